"""`slice status`."""

import typer

from cli import facts, reach
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.tables import View

_STATUS = View(name=lambda item: str(item.get("cluster_id")), columns=(), empty="")


def status(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show the whole cluster in a few lines."""
    invocation: Invocation = ctx.obj
    found = reach.admin(invocation).get("status")
    Printer(invocation, output).thing(found, _STATUS, facts.status_facts(found))
