"""`slice store list` and `slice store gc`."""

from typing import Annotated

import typer

from cli import reach
from cli.human import size
from cli.invocation import Invocation
from cli.options import Output, OutputOption, seconds
from cli.printing import Printer
from cli.views import STORED


def list_(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the files in the nodes' stores: their size, who uses them, and since when they are unused."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("store"), STORED)


def gc(
    ctx: typer.Context,
    node: Annotated[str | None, typer.Option("--node", metavar="NODE", help="Only this node's store.")] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="DURATION", help="Only what was unused for so long, e.g. 7d."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove files that no model uses from the nodes' stores."""
    invocation: Invocation = ctx.obj
    body = {"node": node, "older_than_s": int(seconds(older_than) or 0), "dry_run": dry_run}
    found = reach.admin(invocation).post("store", "gc", body=body)
    printer = Printer(invocation, output)
    if output not in {Output.TABLE, Output.WIDE} or found.get("items"):
        printer.listing(found, STORED)
    count, kept = len(found.get("items") or []), len(found.get("kept") or [])
    amount = f"{count} unused file{'' if count == 1 else 's'}, {size(found.get('total_bytes'))}" if count else "nothing"
    verb = "would be removed" if dry_run else "is removed" if count == 0 else "will be gone in a moment"
    rest = f"; {kept} more unused but too young, or wanted by a pull" if kept else ""
    invocation.terminal.note(f"{amount} {verb}{rest}")
