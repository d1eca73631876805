"""`slice list`, `slice show`, `slice cp`, `slice rm` and `slice catalog`."""

from typing import Annotated

import typer

from cli import facts, reach
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.views import CATALOG, MODELS
from core.errors import Failure

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Model name.")]


def list_(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the models of the cluster."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("models"), MODELS)


def catalog(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the models that can be pulled by name alone."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("catalog"), CATALOG)


def show(ctx: typer.Context, model: ModelArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one model in full: its newest version, files, deployments and their settings."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    printer = Printer(invocation, output)
    found = client.get("models", model)
    is_read = output in {Output.TABLE, Output.WIDE}
    deployed = [item for item in client.items("deployments") if item.get("model") == model] if is_read else []
    sheet = facts.model_facts(found, deployed, invocation.clock.now(), is_wide=printer.is_wide)
    printer.thing(found, MODELS, sheet)


def cp(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="MODEL", help="Model to copy.")],
    to: Annotated[str, typer.Argument(metavar="NAME", help="Its second name.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a model a second name, without a second file."""
    invocation: Invocation = ctx.obj
    made = reach.admin(invocation).post("models", source, "copy", body={"to": to})
    Printer(invocation, output).done(made, MODELS, f"copied {source} to {to}")


def rm(
    ctx: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models to delete.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Delete their deployments too.")] = False,
) -> None:
    """Delete models; one that is deployed only with --force."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    for model in models:
        try:
            client.delete("models", model, force=force)
        except Failure as failure:
            if failure.code != "registry.model_in_use":
                raise
            hint = f"`slice rm --force {model}` deletes its deployments too"
            raise Failure(failure.code, failure.message, hint=hint) from failure
        invocation.terminal.note(f"deleted {model}")
