"""Waits until a version of an engine is on the nodes, or off them, and says meanwhile what they do.

An engine's name and version come in; the last Engine object goes out. Called by `slice engine install|upgrade|remove
--wait`. Nodes that are not heard of are not waited for: they are told later.
"""

from collections.abc import Callable

from cli.client import AdminClient, Json, failure_of
from cli.engine_views import install_sentence, installs_of
from cli.polling import looks
from cli.progress import status_line
from cli.terminal import Terminal
from core.clock import Clock
from core.errors import CODES, Failure
from core.units import text_from_seconds

_MOVING = frozenset({"queued", "installing", "removing"})
_BROKEN = frozenset({"failed", "crash_loop"})


def installed(
    client: AdminClient,
    terminal: Terminal,
    clock: Clock,
    *,
    name: str,
    version: str,
    node: str | None,
    timeout_s: float | None,
) -> Json:
    """Wait until `version` is ready wherever it is wanted and can be waited for.

    Raises:
        Failure: an install failed, or was not done in `timeout_s`; the node goes on trying.
    """

    def is_done(engine: Json) -> bool:
        installs = installs_of(engine, version, node)
        for one in installs:
            if one.get("state") == "failed":
                raise _failed(one)
        return all(one.get("state") not in _MOVING for one in installs)

    return _until(client, terminal, clock, name, version, node, timeout_s, is_done)


def removed(
    client: AdminClient,
    terminal: Terminal,
    clock: Clock,
    *,
    name: str,
    version: str,
    node: str | None,
    timeout_s: float | None,
) -> Json:
    """Wait until `version` is on none of the nodes that can be waited for.

    Raises:
        Failure: a node keeps it, e.g. for a replica, or cannot remove it, or it was not gone in `timeout_s`.
    """

    def is_done(engine: Json) -> bool:
        installs = installs_of(engine, version, node)
        for one in installs:
            if one.get("code"):
                raise _failed(one)
        return not installs

    return _until(client, terminal, clock, name, version, node, timeout_s, is_done)


def moved(
    client: AdminClient,
    terminal: Terminal,
    clock: Clock,
    *,
    names: list[str],
    version: str,
    timeout_s: float | None,
) -> None:
    """Wait until the deployments `names` are served by replicas of `version` alone, as many as they shall have.

    Raises:
        Failure: a new replica cannot run (the old ones serve on), or it was not done in `timeout_s`.
    """
    line = status_line(terminal)
    deadline = None if timeout_s is None else clock.monotonic() + timeout_s
    try:
        for name in names:
            for answer in looks(lambda: client.get("replicas"), line.say, clock):
                mine = [one for one in answer.get("items") or [] if one.get("deployment") == name]
                deployment = client.get("deployments", name)
                wanted = int(deployment.get("replicas") or 0) if deployment.get("is_enabled", True) else 0
                if _is_served(mine, version, wanted):
                    break
                line.say(f"{name}: new replicas with {version} take over")
                if deadline is not None and clock.monotonic() > deadline:
                    raise _too_late(f"{name} is not served by {version}", timeout_s or 0, f"`slice ps` shows {name}")
    finally:
        line.close()


def _is_served(replicas: list[Json], version: str, wanted: int) -> bool:
    fresh = [one for one in replicas if one.get("engine_version") == version]
    for one in fresh:
        if one.get("state") in _BROKEN:
            code = str(one.get("code") or "")
            message = f"{one.get('deployment')} cannot run {version}: {one.get('message')}"
            raise Failure(
                code if code in CODES else "engine.died_at_start",
                message,
                hint=f"the old replicas serve on; `slice engine rollback {one.get('engine')}` returns to them",
            )
    is_old_gone = not any(one.get("desired") == "run" for one in replicas if one not in fresh)
    return is_old_gone and sum(1 for one in fresh if one.get("state") == "ready") >= wanted


def _too_late(what: str, timeout_s: float, hint: str) -> Failure:
    return Failure("controller.not_ready", f"{what} after {text_from_seconds(timeout_s)}", hint=f"it goes on; {hint}")


def _until(
    client: AdminClient,
    terminal: Terminal,
    clock: Clock,
    name: str,
    version: str,
    node: str | None,
    timeout_s: float | None,
    is_done: Callable[[Json], bool],
) -> Json:
    line = status_line(terminal)
    deadline = None if timeout_s is None else clock.monotonic() + timeout_s
    try:
        for engine in looks(lambda: client.get("engines", name), line.say, clock):
            if is_done(engine):
                return engine
            moving = [one for one in installs_of(engine, version, node) if one.get("state") in _MOVING]
            if moving:
                more = f" (and {len(moving) - 1} more)" if len(moving) > 1 else ""
                line.say(install_sentence(engine, moving[0]) + more)
            if deadline is not None and clock.monotonic() > deadline:
                hint = f"`slice engine show {name}` shows how far it is"
                raise _too_late(f"{name} {version} is not where it should be", timeout_s or 0, hint)
    finally:
        line.close()
    raise AssertionError("looks() never ends by itself")


def _failed(install: Json) -> Failure:
    code = str(install.get("code") or "")
    message = f"node {install.get('node')}: {install.get('message')}"
    return failure_of({"code": code if code in CODES else "engine.install_failed", "message": message})
