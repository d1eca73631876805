"""`slice enable` and `slice disable`."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import typer

from cli import reach
from cli.invocation import Invocation
from cli.lookup import serving
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.views import DEPLOYMENTS

NamesArgument = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Deployments, or models and aliases for all of theirs.")
]


class Answer(StrEnum):
    """What the front door answers for a disabled deployment."""

    NOT_FOUND = "not_found"
    UNAVAILABLE = "unavailable"


def disable(
    ctx: typer.Context,
    names: NamesArgument,
    answer: Annotated[
        Answer | None,
        typer.Option("--answer", help="not_found: 404, as if unknown; unavailable: 503. As before by default."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Take deployments out of service: nothing reaches or starts them, their streams end, their replicas stop."""
    body = {"is_enabled": False, **({"disabled_answer": answer.value} if answer else {})}
    _switch(ctx, names, body, "disabled", output)


def enable(ctx: typer.Context, names: NamesArgument, output: OutputOption = Output.TABLE) -> None:
    """Put deployments back into service with as many replicas as they had."""
    _switch(ctx, names, {"is_enabled": True}, "enabled", output)


def _switch(ctx: typer.Context, names: list[str], body: Mapping[str, object], word: str, output: Output) -> None:
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    printer = Printer(invocation, output)
    # All names are looked up before anything is changed: one that is mistyped changes nothing.
    found = {str(item["name"]): None for name in names for item in serving(client, name)}
    for deployment in found:
        printer.done(client.patch("deployments", deployment, body=body), DEPLOYMENTS, f"{word} {deployment}")
