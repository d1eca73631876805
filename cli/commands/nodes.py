"""`slice node list|show|approve|unbrake`."""

from typing import Annotated

import typer

from cli import facts, reach
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.tables import View
from cli.views import NODES

_BRAKE = View(name=lambda _: "brake", columns=(), empty="")


def list_(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the nodes."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("nodes"), NODES)


def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NODE", help="Node name.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one node, its devices and its engines."""
    invocation: Invocation = ctx.obj
    found = reach.admin(invocation).get("nodes", name)
    printer = Printer(invocation, output)
    printer.thing(found, NODES, facts.node_facts(found, invocation.clock.now(), is_wide=printer.is_wide))


def approve(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NODE", help="Name or id of the node.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a node work that joined with a token made with --manual; before that it gets no model, file or secret."""
    invocation: Invocation = ctx.obj
    found = reach.admin(invocation).post("nodes", name, "approve", body={})
    Printer(invocation, output).done(found, NODES, f"node {name} may work")


def unbrake(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Place replicas anew though many nodes went silent at once: what is lost now is really lost."""
    invocation: Invocation = ctx.obj
    released = reach.admin(invocation).post("brake", "release", body={})
    what = "is released" if released["was_on"] else "was not on"
    Printer(invocation, output).done(released, _BRAKE, f"the brake {what}; {released['lost']} nodes are lost")
