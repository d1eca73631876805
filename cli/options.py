"""Options that many commands share, written once so that they look alike everywhere."""

from enum import StrEnum
from typing import Annotated

import typer

from core.units import seconds_from_text


class Output(StrEnum):
    """How data is printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", help="table and wide are for people, json and yaml are the API's own object."),
]


DurationOption = Annotated[
    str | None,
    typer.Option("--timeout", metavar="DURATION", help="Longest wait, e.g. 10m; without it, as long as there is hope."),
]


def seconds(text: str | None) -> float | None:
    """Return the seconds that a duration option names; a bare number counts as seconds.

    Raises:
        Failure: `request.invalid_duration`.
    """
    return None if text is None else seconds_from_text(f"{text}s" if text.strip().isdigit() else text)


def wanted_output(arguments: list[str]) -> Output:
    """Return the format that a command line asks for, before it is parsed: errors obey `-o json` as well."""
    found = Output.TABLE
    for position, word in enumerate(arguments):
        if word == "--":
            break
        if word in {"-o", "--output"} and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif word.startswith("--output="):
            value = word.removeprefix("--output=")
        elif word.startswith("-o") and len(word) > 2:
            value = word[2:].removeprefix("=")
        else:
            continue
        if value in set(Output):
            found = Output(value)
    return found
