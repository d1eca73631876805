"""Options that many commands share, written once so that they look alike everywhere."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from core.errors import Failure
from core.units import seconds_from_text


class Output(StrEnum):
    """How data is printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


ApproveOption = Annotated[
    str | None,
    typer.Option("--approve-template", metavar="SHA256", help="Approve the version's changed chat template."),
]
OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", help="table and wide are for people, json and yaml are the API's own object."),
]


DurationOption = Annotated[
    str | None,
    typer.Option("--timeout", metavar="DURATION", help="Longest wait, e.g. 10m; without it, as long as there is hope."),
]

SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the engine; repeatable.")
]
RequireOption = Annotated[
    list[str] | None,
    typer.Option("--require", metavar="CAPABILITY", help="What its engine must be able to do; repeatable."),
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


def parsed_settings(pairs: list[str]) -> dict[str, Any]:
    """Return `KEY=VALUE` pairs as settings: numbers, true, false and null are taken as such, all else as text.

    Raises:
        Failure: `request.usage` for a pair without `=`.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, mark, text = pair.partition("=")
        if not mark or not key:
            raise Failure(
                "request.usage", f"{pair!r} is no setting", hint="write --set KEY=VALUE, e.g. --set context=4096"
            )
        found[key.strip()] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")  # NaN and Infinity: Python's own extension
