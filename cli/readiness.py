"""Waits until a deployment serves, and says meanwhile what it waits for.

A deployment's name comes in; `Serving` or `NotServing` goes out as a value, for not coming up is an expected ending.
Called by `slice run` and `slice deploy --wait`. Without a time-out it waits as long as there is hope.
"""

from dataclasses import dataclass

from cli import exits
from cli.client import AdminClient, Json, failure_of
from cli.options import Output
from cli.polling import looks
from cli.progress import StatusLine, status_line
from cli.reporting import report
from cli.terminal import Terminal
from core.clock import Clock
from core.errors import CODES, Failure, Retry
from core.units import text_from_seconds

_ROUTE_PATIENCE_S = 10.0
"""Longest wait for the doors to apply a new route: they learn it within 2 s; past that the door itself says why."""
_LAST_LINES = 20  # of a failed engine's log: enough for its reason, short enough to read


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The deployment answers; `public_name` is what the front door calls it."""

    deployment: Json
    public_name: str


@dataclass(frozen=True, kw_only=True)
class NotServing:
    """The deployment will not answer, why, and the exit code that says so; `log_tail` is its engine's last words."""

    failure: Failure
    exit_code: int
    log_tail: tuple[str, ...] = ()


def awaited(
    client: AdminClient,
    terminal: Terminal,
    clock: Clock,
    *,
    name: str,
    asked: str,
    timeout_s: float | None,
    is_change: bool = False,
) -> Serving | NotServing:
    """Wait for deployment `name`, `asked` for under a name that may be its alias; `timeout_s` None waits on.

    After a change (`is_change`) replicas of before do not count, and all must serve.

    Raises:
        Failure: the deployment vanished, or the controller stayed away.
    """
    line = status_line(terminal)
    deadline = None if timeout_s is None else clock.monotonic() + timeout_s
    try:
        for deployment in looks(lambda: client.get("deployments", name), line.say, clock):
            ended = _ending(client, deployment)
            if ended is not None:
                return ended
            if _serves(deployment, is_change=is_change):
                return _routed(client, line, clock, deployment, asked)
            line.say(sentence(deployment))
            if deadline is not None and clock.monotonic() > deadline:
                return _too_late(deployment, timeout_s or 0)
    finally:
        line.close()
    raise AssertionError("looks() never ends by itself")


def _serves(deployment: Json, *, is_change: bool) -> bool:
    if is_change:
        return (deployment.get("current_replicas") or 0) >= (deployment.get("replicas") or 0)
    return (deployment.get("ready_replicas") or 0) > 0


def told(ended: NotServing, terminal: Terminal, output: Output) -> int:
    """Show why a deployment does not serve, its engine's last words first, and return its exit code."""
    if output is not Output.JSON:
        for line in ended.log_tail:
            terminal.note(f"  {line}")
    report(ended.failure, terminal, output)
    return ended.exit_code


def sentence(deployment: Json) -> str:
    """Return what a deployment is doing, e.g. why it waits."""
    name = deployment.get("name")
    refusal = deployment.get("refusal") or {}
    reason = deployment.get("waiting") or refusal.get("message")
    if not reason and (deployment.get("current_replicas") or 0) < (deployment.get("replicas") or 0):
        return f"{name}: {deployment.get('current_replicas') or 0} of {deployment.get('replicas')} replicas are new"
    return f"{name}: {reason}" if reason else f"{name} is {deployment.get('state')}"


def _ending(client: AdminClient, deployment: Json) -> NotServing | None:
    """Return why a deployment will not serve: 1 going away, 2 disabled or stopped, 3 failed, 4 refused; else None."""
    name = str(deployment.get("name"))
    if deployment.get("is_deleting"):  # 1
        failure = Failure("deployment.not_found", f"deployment {name} is being deleted", hint=f"`slice deploy {name}`")
        return NotServing(failure=failure, exit_code=exits.CONFLICT)
    if deployment.get("is_enabled") is False:  # 2
        failure = Failure("deployment.disabled", f"{name} is disabled", hint=f"`slice enable {name}` lets it serve")
        return NotServing(failure=failure, exit_code=exits.CONFLICT)
    if deployment.get("state") == "stopped" or deployment.get("replicas") == 0:  # 2
        failure = Failure("door.model_not_ready", f"{name} was stopped", hint=f"`slice scale {name} 1` starts it")
        return NotServing(failure=failure, exit_code=exits.UNAVAILABLE)
    if deployment.get("state") == "failed":  # 3
        return _failed(client, deployment)
    refusal = deployment.get("refusal")
    if refusal:  # 4
        refused = failure_of(refusal)
        if refused.retry is Retry.NEVER:
            return NotServing(failure=_with_nodes(refused, refusal), exit_code=exits.UNAVAILABLE)
    return None


def _failed(client: AdminClient, deployment: Json) -> NotServing:
    name = str(deployment.get("name"))
    replicas = [item for item in client.items("replicas") if item.get("deployment") == name]
    broken = [item for item in replicas if item.get("state") in {"failed", "crash_loop"}] or replicas or [{}]
    last = max(broken, key=lambda item: str(item.get("state_since") or ""))
    code = str(last.get("code") or "")
    failure = Failure(
        code if code in CODES else "engine.died_at_start",
        str(last.get("message") or deployment.get("waiting") or f"{name} failed to start"),
        hint=f"`slice logs {name}` shows the whole log; `slice ps` shows the replica",
    )
    tail = tuple(str(text) for text in last.get("log_tail") or [])[-_LAST_LINES:]
    return NotServing(failure=failure, exit_code=exits.FAILED, log_tail=tail)


def _with_nodes(refused: Failure, refusal: Json) -> Failure:
    reasons = "; ".join(f"{item.get('node')}: {item.get('reason')}" for item in refusal.get("nodes") or [])
    message = f"{refused.message} ({reasons})" if reasons else refused.message
    return Failure(refused.code, message, hint=refused.hint)


def _too_late(deployment: Json, timeout_s: float) -> NotServing:
    failure = Failure(
        "door.model_not_ready",
        f"not ready after {text_from_seconds(timeout_s)}. {sentence(deployment)}",
        hint=f"it keeps trying; `slice ps` shows how far it is, `slice stop {deployment.get('name')}` ends it",
    )
    return NotServing(failure=failure, exit_code=exits.UNAVAILABLE)


def _routed(client: AdminClient, line: StatusLine, clock: Clock, deployment: Json, asked: str) -> Serving:
    """Wait until every living door has the deployment's route, so that the first question is not refused."""
    deadline = clock.monotonic() + _ROUTE_PATIENCE_S
    name = str(deployment.get("name"))
    public = name
    for routes in looks(lambda: client.get("routes"), line.say, clock):
        mine = [
            route for route in routes.get("items") or [] if route.get("deployment") == name and route.get("targets")
        ]
        names = [str(route.get("public_name")) for route in mine]
        public = next((word for word in (asked, name, *names) if word in names), name)
        doors = routes.get("doors") or []
        is_applied = all((door.get("applied_version") or 0) >= (routes.get("version") or 0) for door in doors)
        if (names and doors and is_applied) or clock.monotonic() > deadline:
            break
        line.say("waiting for the front door to learn the new route")
    return Serving(deployment=deployment, public_name=public)
