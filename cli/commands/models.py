"""`slice list`, `slice show`, `slice cp`, `slice rm` and `slice catalog`."""

from typing import Annotated

import typer

from cli import facts, leftovers, reach
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.tables import Item
from cli.views import CATALOG, MODELS, newest_version
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


def show(
    ctx: typer.Context,
    model: ModelArgument,
    template: Annotated[
        bool, typer.Option("--template", help="Print the chat template of its newest version, and what is odd in it.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one model in full: its newest version, files, deployments and their settings."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    printer = Printer(invocation, output)
    found = client.get("models", model)
    if template:
        _show_template(invocation, client.get(*_template_path(found)), printer)
        return
    is_read = output in {Output.TABLE, Output.WIDE}
    deployed = [item for item in client.items("deployments") if item.get("model") == model] if is_read else []
    sheet = facts.model_facts(found, deployed, invocation.clock.now(), is_wide=printer.is_wide)
    printer.thing(found, MODELS, sheet)


def _template_path(model: Item) -> tuple[str, ...]:
    number = newest_version(model).get("number")
    if number is None:
        name = str(model.get("name"))
        raise Failure("registry.version_not_found", f"model {name!r} has no version", hint=f"`slice pull {name}`")
    return ("models", str(model["name"]), "versions", str(number), "template")


def _show_template(invocation: Invocation, found: Item, printer: Printer) -> None:
    if printer.output in {Output.JSON, Output.YAML}:
        printer.value(found)
        return
    for finding in found.get("findings") or []:
        invocation.terminal.note(f"note: {finding}")
    if found.get("text"):
        invocation.terminal.data(str(found["text"]))
    else:
        invocation.terminal.note(f"version {found.get('version')} of {found.get('model')} has no chat template")


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
        digests = leftovers.digests_of(client, model)
        try:
            client.delete("models", model, force=force)
        except Failure as failure:
            if failure.code != "registry.model_in_use":
                raise
            hint = f"`slice rm --force {model}` deletes its deployments too"
            raise Failure(failure.code, failure.message, hint=hint) from failure
        left = leftovers.left_sentence(client, digests)
        invocation.terminal.note(f"deleted {model}" + (f"; {left}" if left else ""))
