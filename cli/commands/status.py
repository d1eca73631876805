"""`slice status`."""

import typer

from cli import facts, reach
from cli.connection import local_node
from cli.invocation import Invocation
from cli.joined import status as joined_status
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.tables import View

_STATUS = View(name=lambda item: str(item.get("cluster_id")), columns=(), empty="")


def status(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show the whole cluster in a few lines; on a machine that joined one, how that machine stands with it."""
    invocation: Invocation = ctx.obj
    node = local_node(invocation)
    if node is not None:
        stands = joined_status.status(node, invocation.clock.now())
        Printer(invocation, output).thing(stands, joined_status.VIEW, joined_status.facts_of(stands))
        return
    found = reach.admin(invocation).get("status")
    Printer(invocation, output).thing(found, _STATUS, facts.status_facts(found))
