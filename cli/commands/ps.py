"""`slice ps`."""

import typer

from cli import reach
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.views import REPLICAS


def ps(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List what is running, and where; a dead engine shows its last log line."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("replicas"), REPLICAS)
