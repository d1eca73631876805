"""Waits until a node is empty or a replica has moved, and says meanwhile what is waited for.

A name comes in; `Left` or `StillThere` goes out as a value, for a place that nobody has is an expected ending. Called
by `slice node drain --wait` and `slice move --wait`. Without a time-out it waits as long as the wish stands.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cli import exits
from cli.client import AdminClient, Json
from cli.options import Output
from cli.polling import looks
from cli.progress import status_line
from cli.reporting import report
from cli.terminal import Terminal
from core.clock import Clock
from core.errors import Failure, Kind
from core.units import text_from_seconds


@dataclass(frozen=True, kw_only=True)
class Left:
    """It has left; `last` is what was seen last of the node, or of the replica's successor ({} when it has none)."""

    last: Json


@dataclass(frozen=True, kw_only=True)
class StillThere:
    """It has not left, why, and the exit code that says so."""

    failure: Failure
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What every wait needs; `timeout_s` None waits on."""

    client: AdminClient
    terminal: Terminal
    clock: Clock
    timeout_s: float | None


def drained(waiting: Waiting, name: str) -> Left | StillThere:
    """Wait until the node `name`, which drains, holds no replica.

    Raises:
        Failure: the node was forgotten, or the controller stayed away.
    """
    hint = f"it goes on: `slice node drain {name} --wait` watches it, `slice node uncordon {name}` ends it"

    def ending(node: Json) -> Left | StillThere | None:
        if not node.get("replicas"):
            return Left(last=node)
        if not node.get("drain"):
            failure = Failure("node.in_use", f"the drain of node {name} was ended by somebody")
            return StillThere(failure=failure, exit_code=exits.CONFLICT)
        return None

    return _awaited(waiting, lambda: waiting.client.get("nodes", name), ending, node_sentence, hint)


def node_sentence(node: Json) -> str:
    """Return what a draining node still holds, and what the first of it waits for; what is stuck before the rest."""
    left = sorted((node.get("drain") or {}).get("replicas") or [], key=lambda one: not one.get("is_stuck"))
    count = len(left)
    head = f"node {node.get('name')} still holds {count} replica{'s' if count != 1 else ''}"
    return f"{head}; {left[0].get('deployment')}: {left[0].get('waiting')}" if left else head


def moved(waiting: Waiting, replica_id: str) -> Left | StillThere:
    """Wait until a moving replica is gone.

    Raises:
        Failure: the controller stayed away.
    """
    hint = f"it goes on: `slice move {replica_id} --cancel` ends it"
    successor = ""

    def look() -> Json:
        try:
            return waiting.client.get("replicas", replica_id)
        except Failure as failure:
            if failure.kind is not Kind.NOT_FOUND:
                raise
        return {}

    def ending(replica: Json) -> Left | StillThere | None:
        nonlocal successor
        if not replica:
            return Left(last={"id": successor} if successor else {})
        leaving = replica.get("leaving")
        if not leaving and replica.get("desired") == "run":
            failure = Failure("replica.move_refused", f"the move of {replica_id} was cancelled by somebody")
            if told := replica.get("move_failure"):
                failure = Failure("replica.move_given_up", str(told.get("message")), hint=str(told.get("hint") or ""))
            return StillThere(failure=failure, exit_code=exits.CONFLICT)
        successor = str((leaving or {}).get("successor") or successor)
        return None

    return _awaited(waiting, look, ending, replica_sentence, hint)


def replica_sentence(replica: Json) -> str:
    """Return what a replica that is to leave waits for."""
    leaving = replica.get("leaving") or {}
    return f"{replica.get('deployment')}: {leaving.get('waiting') or 'it ends'}"


def _awaited(
    waiting: Waiting,
    look: Callable[[], Json],
    ending: Callable[[Json], Left | StillThere | None],
    sentence: Callable[[Json], str],
    hint: str,
) -> Left | StillThere:
    line = status_line(waiting.terminal)
    timeout_s = waiting.timeout_s
    deadline = None if timeout_s is None else waiting.clock.monotonic() + timeout_s
    try:
        for found in looks(look, line.say, waiting.clock):
            ended = ending(found)
            if ended is not None:
                return ended
            line.say(sentence(found))
            if deadline is not None and waiting.clock.monotonic() > deadline:
                message = f"not done after {text_from_seconds(timeout_s or 0)}. {sentence(found)}"
                failure = Failure("node.in_use", message, hint=hint)
                return StillThere(failure=failure, exit_code=exits.UNAVAILABLE)
    finally:
        line.close()
    raise AssertionError("looks() never ends by itself")


def told(ended: StillThere, terminal: Terminal, output: Output) -> int:
    """Show why it has not left, and return the exit code."""
    report(ended.failure, terminal, output)
    return ended.exit_code
