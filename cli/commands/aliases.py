"""`slice alias set|list|rm`."""

from typing import Annotated

import typer

from cli import reach
from cli.invocation import Invocation
from cli.options import ApproveOption, Output, OutputOption
from cli.printing import Printer
from cli.views import ALIASES


def set_(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The public name, e.g. `chat-default`.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model, or one version of it as MODEL@vN.")],
    approve_template: ApproveOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a name stand for a model, or for one version of it; an existing alias moves at once."""
    invocation: Invocation = ctx.obj
    body = {"model": model}
    if approve_template is not None:
        body["approve_template"] = approve_template
    made = reach.admin(invocation).put("aliases", name, body=body)
    Printer(invocation, output).done(made, ALIASES, f"{name} stands for {model}")


def list_(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the aliases."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("aliases"), ALIASES)


def rm(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Aliases to delete.")],
) -> None:
    """Delete aliases; their models stay."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    for name in names:
        client.delete("aliases", name)
        invocation.terminal.note(f"deleted alias {name}")
