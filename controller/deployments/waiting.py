"""One true sentence about why a deployment is not ready, and one word for its state: pure.

Comes in: the deployment, its replicas with what is known of each now, the refusal. Goes out: `Standing`. Called by the
admin API (with live numbers) and by the route table (without: a table that changed every second would be a new version
every second).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from controller.deployments.model import Deployment, RefusalRow, Replica
from core.states import Desired, NodeState, ReplicaState
from core.units import text_from_seconds
from scheduler.feasible import is_silence

_S = ReplicaState


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One replica as the sentence sees it; numbers are None where they are unknown or not wanted.

    `fetched_share` is 0 to 1, `retry_in_s` and `silent_s` seconds.
    """

    replica: Replica
    node_name: str
    node_state: NodeState
    silent_s: float | None = None
    fetched_share: float | None = None
    retry_in_s: float | None = None
    is_heard: bool = True
    """Whether the node has been heard of since this controller began."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Why replicas that are to end cannot be told to have ended: only their nodes, which are silent, could say so."""

    code: str
    message: str
    hint: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """`state` is ready, starting, waiting, failed, stopped or disabled; `waiting` is empty when ready.

    `block` says what replicas that are still to stop wait for, where that is no matter of seconds.
    """

    state: str
    ready_replicas: int
    waiting: str
    block: Block | None = None


def block_of(sights: Sequence[Sight]) -> Block | None:
    """Return what `sights`, all of which are to end, wait for, or None when they end by themselves.

    A silent node's engine may run and hold what it was promised: only the node's word, or an operator's, frees it.
    """
    names = tuple(sorted({sight.node_name for sight in sights if sight.node_state in _AWAY}))
    if not names:
        return None
    one = len(names) == 1
    which = f"node {names[0]} is" if one else f"nodes {', '.join(names)} are"
    return Block(
        code="replica.node_silent",
        message=f"{which} silent: what ran there counts until {'it returns or is' if one else 'they return or are'} "
        "forgotten",
        hint=f"start the node agent there, or, if it will not return: `slice node forget {names[0]}`",
        nodes=names,
    )


_AWAY = frozenset({NodeState.LOST, NodeState.OFFLINE})


def standing(deployment: Deployment, sights: Sequence[Sight], refusal: RefusalRow | None) -> Standing:
    """Return how a deployment stands.

    1. It is being deleted, or wants no replica: stopped; an operator has disabled it: disabled. What is still to stop
       on a silent node is told.
    2. Enough replicas are ready on nodes that are heard of: ready.
    3. Else the replica nearest to ready decides the sentence; a refusal is added where replicas are missing, unless
       both are about silent nodes: the refusal's numbers are older.
    4. No replica at all: the refusal's message, or that placement is about to look.
    """
    is_ending = deployment.is_deleting or not deployment.is_enabled or deployment.replicas == 0
    if is_ending:
        return _ending(deployment, sights)
    standing_now = _wanted(deployment, sights, refusal)
    return replace(standing_now, block=block_of([one for one in sights if one.replica.desired != Desired.RUN.value]))


def _ending(deployment: Deployment, sights: Sequence[Sight]) -> Standing:
    block, left = block_of(sights), len(sights)
    still = f"; {left} replica{'s' if left != 1 else ''} still to stop" if left else ""
    state, sentence = "stopped", f"it is scaled to 0 replicas{still if block else ''}"
    if deployment.is_deleting:
        sentence = f"it is being deleted; {left} replica{'s' if left != 1 else ''} still to stop"
    elif not deployment.is_enabled:
        state, sentence = "disabled", f"it is disabled{still}"
    if block is not None:
        sentence = f"{sentence}; {block.message}"
    ready = sum(1 for sight in sights if is_serving(sight))
    return Standing(state=state, ready_replicas=ready, waiting=sentence, block=block)


def _wanted(deployment: Deployment, sights: Sequence[Sight], refusal: RefusalRow | None) -> Standing:
    wanted = [sight for sight in sights if sight.replica.desired == Desired.RUN.value]
    ready = sum(1 for sight in wanted if is_serving(sight))
    if ready >= deployment.replicas:
        return Standing(state="ready", ready_replicas=ready, waiting="")
    unready = [sight for sight in wanted if not is_serving(sight)]
    if not unready:
        waiting = refusal.message if refusal else "placement is about to look for a node"
        return Standing(state="waiting", ready_replicas=ready, waiting=waiting)
    nearest = min(unready, key=lambda sight: _ORDER.index(_sentence(sight)[0]))
    state, sentence = _sentence(nearest)
    if refusal is not None and (_is_heard(nearest) or not _is_about_silence(refusal)):
        sentence = f"{sentence}; {refusal.message}"
    return Standing(state=state, ready_replicas=ready, waiting=sentence)


def is_serving(sight: Sight) -> bool:
    """Return whether a replica is wanted, ready, and on a node that is heard of."""
    replica = sight.replica
    return replica.desired == Desired.RUN.value and replica.state == _S.READY.value and _is_heard(sight)


_ORDER = ("starting", "waiting", "failed")


def _is_heard(sight: Sight) -> bool:
    return sight.node_state is NodeState.READY


def _is_about_silence(refusal: RefusalRow) -> bool:
    return bool(refusal.nodes) and all(is_silence(node["reason"]) for node in refusal.nodes)


def _sentence(sight: Sight) -> tuple[str, str]:
    replica, node = sight.replica, sight.node_name
    state = _S(replica.state)
    if not _is_heard(sight):
        return "waiting", _silent(sight)
    if state in _MOVING:
        return "starting", _moving(sight, state)
    because = f": {replica.message}" if replica.message else ""
    if state is _S.BACKOFF:
        retry = f" in {text_from_seconds(sight.retry_in_s)}" if sight.retry_in_s else " soon"
        return "waiting", f"the engine on node {node} died{because}; it is started again{retry}"
    if state is _S.CRASH_LOOP:
        return "failed", f"the engine on node {node} died too often{because}"
    if state is _S.UNHEALTHY:
        return "waiting", f"the engine on node {node} stopped answering its health probe{because}"
    if state is _S.LOST:
        return "waiting", f"node {node} has just come back; its engine is being looked at"
    return "failed", f"it cannot run on node {node}{because}"


def _silent(sight: Sight) -> str:
    if sight.node_state is NodeState.OFFLINE:
        return f"node {sight.node_name} is offline: its node agent was stopped"
    if not sight.is_heard:
        return f"node {sight.node_name} has not connected since the controller was started"
    since = f" for {text_from_seconds(sight.silent_s)}" if sight.silent_s is not None else ""
    return f"node {sight.node_name} has not been heard of{since}"


_MOVING = frozenset({_S.ASSIGNED, _S.FETCHING, _S.INSTALLING, _S.STARTING, _S.STOPPING, _S.STOPPED})


def _moving(sight: Sight, state: ReplicaState) -> str:
    replica, node = sight.replica, sight.node_name
    if state is _S.FETCHING:
        share = f": {sight.fetched_share:.0%}" if sight.fetched_share is not None else ""
        return f"node {node} is fetching the model{share}"
    if state is _S.INSTALLING:
        return f"node {node} is installing {replica.engine} {replica.engine_version}"
    if state is _S.STARTING:
        return f"{replica.engine} is starting on node {node}"
    if state is _S.ASSIGNED:
        return f"node {node} has been asked to start {replica.engine}"
    return f"a replica on node {node} is ending"
