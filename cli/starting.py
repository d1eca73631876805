"""Makes a model answer: pulls, deploys or wakes it when needed, and waits. What `slice run` does before it talks.

A wish comes in; the name to ask the front door for goes out, or why there is none. Called by `cli.commands.run`.
"""

from dataclasses import dataclass

from cli import pulling, readiness
from cli.client import AdminClient, Json
from cli.invocation import Invocation
from cli.lookup import meant, version_of
from cli.readiness import NotServing, Serving
from core.errors import Failure, Kind
from core.names import version_text


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user wants to talk with, and how it shall be brought up if it is not."""

    name: str
    source: str | None = None
    engine: str | None = None
    timeout_s: float | None = None


def made_to_serve(client: AdminClient, invocation: Invocation, wish: Wish) -> Serving | NotServing:
    """Return the deployment that serves `wish`, brought up if need be: 1 it exists, 2 it sleeps, 3 it must be made.

    Raises:
        Failure: the pull or the deployment was refused, or `deployment.disabled`.
    """
    model, number = version_of(client, wish.name)
    known = [item for item in client.items("deployments") if not item.get("is_deleting")]
    found = meant(known, wish.name, lambda: (model, number))
    enabled = [item for item in found if item.get("is_enabled", True)]
    if found and not enabled:
        name = str(found[0]["name"])
        raise Failure("deployment.disabled", f"{name} is disabled", hint=f"`slice enable {name}` lets it serve again")
    if found:
        found = enabled
        chosen = max(found, key=lambda item: (item.get("ready_replicas") or 0, item.get("replicas") or 0))
        name = str(chosen["name"])
        if wish.engine not in {None, chosen.get("engine")}:
            invocation.terminal.note(f"{name} is deployed on {chosen.get('engine')} already; --engine is not used")
        if not chosen.get("replicas"):  # 2
            invocation.terminal.note(f"starting {name}")
            client.patch("deployments", name, body={"replicas": 1})
    else:  # 3
        is_taken = number is not None and any(item.get("name") == model for item in known)
        name = _deployed(client, invocation, wish, model, number, f"{model}-v{number}" if is_taken else None)
    try:
        return readiness.awaited(
            client, invocation.terminal, invocation.clock, name=name, asked=wish.name, timeout_s=wish.timeout_s
        )
    except KeyboardInterrupt:
        invocation.terminal.note(f"stopped waiting; {name} goes on starting (`slice ps`), `slice stop {name}` ends it")
        raise


def _deployed(
    client: AdminClient, invocation: Invocation, wish: Wish, model: str, number: int | None, name: str | None
) -> str:
    if not _is_known(client, model):
        pulling.pulled(client, invocation.terminal, invocation.clock, name=model, source=wish.source)
    body: dict[str, object] = {
        "name": name,
        "model": version_text(model, number),
        "engine": wish.engine,
        "engine_version": None,
        "replicas": 1,
        "settings": {},
    }
    try:
        made: Json = client.post("deployments", body=body)
    except Failure as failure:
        if failure.code != "deployment.name_taken":
            raise
        return name or model  # somebody else was quicker with the same wish
    return str(made.get("name") or model)


def _is_known(client: AdminClient, model: str) -> bool:
    try:
        client.get("models", model)
    except Failure as failure:
        if failure.kind is Kind.NOT_FOUND:
            return False
        raise
    return True
