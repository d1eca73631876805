"""`slice model where|copy|move`: where models' files are."""

from typing import Annotated

import typer

from cli import pulling, reach
from cli.human import size
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.views import PLACES, PULLS
from core.names import split_version

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Model, or a version of it as MODEL@vN.")]


def where(ctx: typer.Context, model: ModelArgument, output: OutputOption = Output.TABLE) -> None:
    """List the nodes whose stores hold a model's files, for each of its versions."""
    invocation: Invocation = ctx.obj
    name, number = split_version(model)
    found = reach.admin(invocation).get("models", name, "where", version=number)
    Printer(invocation, output).listing(found, PLACES)


def copy(
    ctx: typer.Context,
    model: ModelArgument,
    to: Annotated[str, typer.Option("--to", metavar="NODE", help="Node whose store is to have them.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring a model's files into a node's store: from the nodes that have them, else from their source.

    Ctrl-C cancels.
    """
    _bring(ctx.obj, model, to, None, output)


def move(
    ctx: typer.Context,
    model: ModelArgument,
    to: Annotated[str, typer.Option("--to", metavar="NODE", help="Node whose store is to have them.")],
    away_from: Annotated[str, typer.Option("--from", metavar="NODE", help="Node whose store they leave afterwards.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring a model's files into another node's store, and off the one where they were once they are there."""
    _bring(ctx.obj, model, to, away_from, output)


def _bring(invocation: Invocation, model: str, to: str, away_from: str | None, output: Output) -> None:
    client = reach.admin(invocation)
    name, number = split_version(model)
    made = client.post("models", name, "copies", body={"to": to, "version": number, "from": away_from})
    was_there = made.get("state") == "done"
    done = made if was_there else pulling.followed(client, invocation.terminal, invocation.clock, made)
    amount = size(done.get("bytes_total"))
    sentence = f"{model} is on {to} already" if was_there else f"copied {model} to {to}, {amount}"
    if away_from is not None:
        sentence += f"; it leaves {away_from} in a moment"
    Printer(invocation, output).done(done, PULLS, sentence)
