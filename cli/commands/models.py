"""`slice list`, `slice show`, `slice cp`, `slice rm` and `slice catalog`."""

from typing import Annotated

import typer

from cli import facts, leftovers, reach
from cli.client import AdminClient
from cli.human import size
from cli.invocation import Invocation
from cli.options import Output, OutputOption, SettingsOption, parsed_settings
from cli.printing import Printer
from cli.tables import Facts, Item
from cli.views import CATALOG, DEPLOYMENTS, MODELS, VERSIONS, newest_version
from core.errors import Failure
from core.names import split_version

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Model, or a version of it as MODEL@vN.")]


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
        bool, typer.Option("--template", help="Print the version's chat template, and what is odd in it.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one model in full: one of its versions, the newest by default, its deployments and their settings."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    printer = Printer(invocation, output)
    name, number = split_version(model)
    found = client.get("models", name)
    version = newest_version(found) if number is None else client.get("models", name, "versions", str(number))
    if template:
        _show_template(invocation, client.get(*_template_path(found, version)), printer)
        return
    if output not in {Output.TABLE, Output.WIDE}:
        printer.thing(found if number is None else version, MODELS if number is None else VERSIONS, Facts(facts=()))
        return
    deployed = [
        item
        for item in client.items("deployments")
        if item.get("model") == found.get("name") and number in (None, item.get("version"))
    ]
    sheet = facts.model_facts(found, deployed, invocation.clock.now(), version=version, is_wide=printer.is_wide)
    printer.thing(found, MODELS, sheet)


def _template_path(model: Item, version: Item) -> tuple[str, ...]:
    number = version.get("number")
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
        invocation.terminal.note(f"note: its SHA-256 is {found.get('sha256')}")
        invocation.terminal.data(str(found["text"]))
    else:
        invocation.terminal.note(f"version {found.get('version')} of {found.get('model')} has no chat template")


def cp(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Model to copy, as MODEL or MODEL@vN; or a deployment.")
    ],
    to: Annotated[str, typer.Argument(metavar="NAME", help="Name of the copy.")],
    deployment: Annotated[
        bool, typer.Option("--deployment", "-d", help="SOURCE is a deployment: copy it with its settings.")
    ] = False,
    settings: SettingsOption = None,
    replicas: Annotated[int | None, typer.Option("--replicas", min=0, help="Replicas of a copied deployment.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Copy a model, or a deployment with its settings, under another name; no file is copied."""
    invocation: Invocation = ctx.obj
    client, printer = reach.admin(invocation), Printer(invocation, output)
    if deployment:
        body = {"to": to, "settings": parsed_settings(settings or []), "replicas": replicas}
        made = client.post("deployments", source, "copy", body=body)
        printer.done(made, DEPLOYMENTS, f"copied deployment {source} to {to}")
        return
    if settings or replicas is not None:
        raise Failure(
            "request.usage", "a model has no settings or replicas", hint="--deployment copies a deployment with them"
        )
    name, number = split_version(source)
    made = client.post("models", name, "copy", body={"to": to, "version": number})
    printer.done(made, MODELS, f"copied {source} to {to}")


def _take_off(invocation: Invocation, client: AdminClient, models: list[str], node: str) -> None:
    for model in models:
        name, number = split_version(model)
        found = client.delete("models", name, "nodes", node, version=number)
        kept = len(found.get("kept") or [])
        rest = f"; {kept} of its files stay: another model there has them too" if kept else ""
        amount = size(found.get("total_bytes"))
        invocation.terminal.note(f"{amount} of {model} will be gone from {node} in a moment{rest}")


def rm(
    ctx: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models, or versions as MODEL@vN.")],
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Delete the deployments and aliases that use them too.")
    ] = False,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="NODE", help="Delete nothing; take their files off this node alone."),
    ] = None,
) -> None:
    """Delete models, or single versions of them; what is in use only with --force."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    if node is not None:
        if force:
            raise Failure("request.usage", "--force deletes models, --node only takes files off a node")
        _take_off(invocation, client, models, node)
        return
    for model in models:
        name, number = split_version(model)
        path = ("models", name) if number is None else ("models", name, "versions", str(number))
        digests = leftovers.digests_of(client, name, number)
        try:
            client.delete(*path, force=force)
        except Failure as failure:
            if failure.code != "registry.model_in_use":
                raise
            hint = f"`slice rm --force {model}` deletes what uses it too"
            raise Failure(failure.code, failure.message, hint=hint) from failure
        left = leftovers.left_sentence(client, digests)
        invocation.terminal.note(f"deleted {model}" + (f"; {left}" if left else ""))
