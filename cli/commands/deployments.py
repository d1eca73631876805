"""`slice deploy`, `slice deployments`, `slice undeploy`, `slice scale` and `slice stop`."""

import json
from typing import Annotated, Any

import typer

from cli import exits, reach, readiness
from cli.invocation import Invocation
from cli.lookup import serving
from cli.options import DurationOption, Output, OutputOption, seconds
from cli.printing import Printer
from cli.views import DEPLOYMENTS
from core.errors import Failure

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Deployment name.")]


def deploy(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model of the registry; `slice pull` brings one.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the deployment; the model's by default.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="Engine; the cluster chooses by default.")] = None,
    engine_version: Annotated[str | None, typer.Option("--engine-version", help="Pin the engine's version.")] = None,
    replicas: Annotated[int, typer.Option("--replicas", min=0, help="How many engines serve it.")] = 1,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the engine; repeatable.")
    ] = None,
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


def deployments(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the deployments."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("deployments"), DEPLOYMENTS)


def undeploy(ctx: typer.Context, name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Delete a deployment; its model stays."""
    invocation: Invocation = ctx.obj
    gone = reach.admin(invocation).delete("deployments", name)
    Printer(invocation, output).done(gone, DEPLOYMENTS, f"{name} goes when its replicas are gone")


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


def parsed_settings(pairs: list[str]) -> dict[str, Any]:
    """Return `KEY=VALUE` pairs as settings: numbers, true, false and null are taken as such, all else as text.

    Raises:
        Failure: `request.usage` for a pair without `=`.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, mark, text = pair.partition("=")
        if not mark or not key:
            raise Failure(
                "request.usage", f"{pair!r} is no setting", hint="write --set KEY=VALUE, e.g. --set context=4096"
            )
        found[key.strip()] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")  # NaN and Infinity: Python's own extension
