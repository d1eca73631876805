"""`slice deploy`, `slice deployments`, `slice update`, `slice undeploy`, `slice scale` and `slice stop`."""

from typing import Annotated

import typer

from cli import exits, reach, readiness
from cli.invocation import Invocation
from cli.lookup import serving
from cli.options import (
    ApproveOption,
    DurationOption,
    Output,
    OutputOption,
    RequireOption,
    SettingsOption,
    parsed_settings,
    seconds,
)
from cli.printing import Printer
from cli.views import DEPLOYMENTS
from core.errors import Failure
from core.names import split_version

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Deployment name.")]


def deploy(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model of the registry, or a version of it as MODEL@vN.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the deployment; the model's by default.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="Engine; the cluster chooses by default.")] = None,
    engine_version: Annotated[str | None, typer.Option("--engine-version", help="Pin the engine's version.")] = None,
    replicas: Annotated[int, typer.Option("--replicas", min=0, help="How many engines serve it.")] = 1,
    settings: SettingsOption = None,
    requires: RequireOption = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="process, container or external; the engine's usual by default.")
    ] = None,
    image: Annotated[
        str, typer.Option("--image", metavar="NAME@sha256:DIGEST", help="Run the engine in a container of this image.")
    ] = "",
    node: Annotated[str, typer.Option("--node", help="The only node that may run it.")] = "",
    secret: Annotated[
        str, typer.Option("--secret", help="Key of an engine that runs elsewhere; see `slice secret`.")
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when it serves.")] = False,
    timeout: DurationOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Deploy a model and leave it running."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    patience = seconds(timeout)
    body = {
        "name": name,
        "model": model,
        "engine": engine,
        "engine_version": engine_version,
        "replicas": replicas,
        "settings": parsed_settings(settings or []),
        **({"requires": requires} if requires else {}),
        **_given(runtime=runtime, image=image, node=node, secret=secret),
    }
    made = client.post("deployments", body=body)
    called = str(made.get("name"))
    if wait and replicas > 0:
        ended = readiness.awaited(
            client, invocation.terminal, invocation.clock, name=called, asked=called, timeout_s=patience
        )
        if isinstance(ended, readiness.NotServing):
            return readiness.told(ended, invocation.terminal, output)
        made = ended.deployment
    sentence = f"{called} serves" if wait and replicas else f"deployed {called}; `slice ps` shows its replicas"
    Printer(invocation, output).done(made, DEPLOYMENTS, sentence)
    return exits.OK


def _given(**fields: str | None) -> dict[str, str]:
    """Return the fields that were given; a controller of the release before knows none of them."""
    return {name: value for name, value in fields.items() if value}


def deployments(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the deployments."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("deployments"), DEPLOYMENTS)


def update(
    ctx: typer.Context,
    name: NameArgument,
    version: Annotated[
        str | None, typer.Option("--version", metavar="vN", help="Go to this version of its model.")
    ] = None,
    engine_version: Annotated[str | None, typer.Option("--engine-version", help="Go to this engine version.")] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", min=0, help="How many engines serve it.")] = None,
    settings: SettingsOption = None,
    requires: RequireOption = None,
    approve_template: ApproveOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it serves as asked.")] = False,
    timeout: DurationOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Change a deployment while it serves: new replicas first, then the old ones go. --set KEY=null is the default."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    patience = seconds(timeout)
    body = {
        "version": None if version is None else _number(version),
        "engine_version": engine_version,
        "replicas": replicas,
        "settings": parsed_settings(settings) if settings else None,
        "requires": requires or None,
        "approve_template": approve_template,
    }
    given = {key: value for key, value in body.items() if value is not None}
    if not given:
        raise Failure("request.usage", "nothing to change", hint="`slice update --help` shows what can be")
    changed = client.patch("deployments", name, body=given)
    if wait and changed.get("replicas"):
        ended = readiness.awaited(
            client,
            invocation.terminal,
            invocation.clock,
            name=name,
            asked=name,
            timeout_s=patience,
            is_change=True,
        )
        if isinstance(ended, readiness.NotServing):
            return readiness.told(ended, invocation.terminal, output)
        changed = ended.deployment
    Printer(invocation, output).done(changed, DEPLOYMENTS, f"{name} is changed; `slice ps` shows its replicas")
    return exits.OK


def _number(version: str) -> int:
    number = split_version(f"version@{version}")[1]
    if number is None:
        raise Failure("request.usage", f"{version!r} is no version", hint="write --version vN, e.g. --version v2")
    return number


def undeploy(ctx: typer.Context, name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Delete a deployment; its model stays."""
    invocation: Invocation = ctx.obj
    gone = reach.admin(invocation).delete("deployments", name)
    Printer(invocation, output).done(gone, DEPLOYMENTS, f"{name} goes when its replicas are gone")
    if blocked := gone.get("blocked"):
        invocation.terminal.note(f"{blocked.get('message')}; {blocked.get('hint')}")


def scale(
    ctx: typer.Context,
    name: NameArgument,
    replicas: Annotated[int, typer.Argument(metavar="N", min=0, help="How many replicas it shall have.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Change how many replicas a deployment has."""
    invocation: Invocation = ctx.obj
    changed = reach.admin(invocation).patch("deployments", name, body={"replicas": replicas})
    Printer(invocation, output).done(
        changed, DEPLOYMENTS, f"{name} shall have {replicas} replica{'s' if replicas != 1 else ''}"
    )


def stop(
    ctx: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Deployments, models or aliases to stop.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Stop models: their deployments get no replicas until `slice run` or `slice scale`."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    printer = Printer(invocation, output)
    for model in models:
        for deployment in serving(client, model):
            name = str(deployment.get("name"))
            changed = client.patch("deployments", name, body={"replicas": 0})
            printer.done(changed, DEPLOYMENTS, f"stopping {name}")
