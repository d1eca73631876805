"""Puts every replica of a deployment into exactly one bucket, and says how many are missing.

In: a deployment, its replicas, the nodes. Out: `Sorting`. Called by `scheduler.plan`. Chooses who stays and who goes;
where a missing one goes is not decided here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from core.ids import NodeId, ReplicaId
from core.states import Desired, NodeState, ReplicaState
from scheduler.snapshot import DeploymentView, NodeView, ReplicaView

OFFLINE_GRACE_S = 30.0
"""A node that said goodbye may be restarting its agent while its engines serve on: replacements wait this long."""


class Bucket(StrEnum):
    """What the plan makes of one replica."""

    KEEP = "keep"  # of the wanted generation, and it stays
    START = "start"  # of the wanted generation, and on its way to ready
    STOP = "stop"  # no longer wanted: this plan stops it
    REPLACE = "replace"  # stays only until a successor is ready: leaving, of an older generation, or failed on its node
    LOST = "lost"  # its node is silent: its promise stands, and a replacement is placed
    WAIT = "wait"  # told to drain or stop already: nothing to do but wait


class Verdict(NamedTuple):
    """One replica's bucket, with the reason when it is stopped; a tuple, because each pass makes one per replica."""

    replica: ReplicaView
    bucket: Bucket
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Sorting:
    """Every replica of one deployment in its bucket.

    `missing` counts the replicas to start now for which nothing runs, `followed` are the leaving ones that get a
    successor now, `exhausted` those that get none because too many have failed; `failed_on` are the nodes that could
    not run this generation.
    """

    verdicts: tuple[Verdict, ...]
    missing: int
    failed_on: frozenset[NodeId]
    followed: tuple[ReplicaView, ...] = ()
    exhausted: tuple[ReplicaView, ...] = ()

    def of(self, bucket: Bucket) -> tuple[ReplicaView, ...]:
        """Return the replicas in `bucket`."""
        return tuple(verdict.replica for verdict in self.verdicts if verdict.bucket is bucket)


_MOVING = frozenset(
    {
        ReplicaState.ASSIGNED,
        ReplicaState.FETCHING,
        ReplicaState.INSTALLING,
        ReplicaState.STARTING,
        ReplicaState.BACKOFF,
        ReplicaState.STOPPING,
    }
)
_SERVED = frozenset({ReplicaState.READY, ReplicaState.UNHEALTHY})
_DEAD = frozenset({ReplicaState.FAILED, ReplicaState.CRASH_LOOP})


def is_gone(node: NodeView) -> bool:
    """Return whether replicas on `node` are to be replaced."""
    return node.state is NodeState.LOST or (node.state is NodeState.OFFLINE and node.silent_s >= OFFLINE_GRACE_S)


def grace_ends_at(node: NodeView, now: datetime) -> datetime | None:
    """Return when a node that said goodbye begins to count as gone, or None when that is not ahead."""
    if node.state is not NodeState.OFFLINE or is_gone(node):
        return None
    return now + timedelta(seconds=OFFLINE_GRACE_S - node.silent_s)


def sorting(
    deployment: DeploymentView,
    replicas: Sequence[ReplicaView],
    nodes: Mapping[NodeId, NodeView],
    now: datetime,
) -> Sorting:
    """Return the bucket of every one of `replicas`, which are all of `deployment`'s.

    The decision per replica, first match wins: 1 told to go already: wait. 2 nothing wanted: stop. 3 it has ended:
    stop. 4 its node is gone: lost. 5 of an older generation: see `_older`. 6 leaving: see `_leaving`. 7 a successor on
    a node that its predecessor no longer moves to: stop. 8 else: see `_current`. The lost replicas of a node that is
    held count as if they lived.
    """
    if _is_settled(deployment, replicas, nodes):
        kept = sorted(replicas, key=lambda replica: replica.replica_id)
        verdicts_of_all = tuple(Verdict(replica, Bucket.KEEP) for replica in kept)
        return Sorting(verdicts=verdicts_of_all, missing=0, failed_on=frozenset())
    want = 0 if deployment.is_deleting else deployment.replicas
    verdicts, current, leaving, older = _groups(deployment, replicas, nodes, want)
    held_back = sum(
        is_held(verdict, nodes) and verdict.replica.generation == deployment.generation for verdict in verdicts
    )
    misplaced = _misplaced(current, leaving, nodes)
    verdicts += misplaced
    dropped = {verdict.replica.replica_id for verdict in misplaced}
    failed = [replica for replica in current if replica.state is ReplicaState.FAILED]
    living = sorted(
        (one for one in current if one.state is not ReplicaState.FAILED and one.replica_id not in dropped),
        key=lambda replica: _worth(replica, nodes, now),
    )
    unready = want - sum(1 for replica in living[:want] if _is_serving(replica, nodes))
    going = _leaving(leaving, living, unready, nodes, now)
    staying = [verdict.replica for verdict in going if verdict.bucket is Bucket.REPLACE]
    covering = sum(1 for replica in staying if _is_serving(replica, nodes))
    verdicts += _current(living, want) + _failed(failed, unready) + going
    verdicts += _older(older, max(0, unready - covering), nodes, now)
    held = min(want, len(living)) + held_back
    succeeded = {replica.succeeds for replica in living}
    alone = [replica for replica in staying if replica.replica_id not in succeeded][: max(0, want - held)]
    # Each want may be tried twice, the second time on another node, so that a bad node costs one try and no loop.
    tries = max(0, min(want - held, 2 * (want - held) - len(failed)))
    missing = min(tries, max(0, want - held) - len(alone))
    return Sorting(
        verdicts=tuple(sorted(verdicts, key=lambda verdict: verdict.replica.replica_id)),
        missing=missing,
        failed_on=frozenset(replica.node_id for replica in failed),
        followed=tuple(alone[: tries - missing]),
        exhausted=tuple(alone[tries - missing :]),
    )


def _is_settled(deployment: DeploymentView, replicas: Sequence[ReplicaView], nodes: Mapping[NodeId, NodeView]) -> bool:
    """Return whether as many as are wanted serve and nothing else is there: nearly all deployments at nearly any time.

    Then every replica is kept, which `sorting` would find out at ten times the cost.
    """
    if deployment.is_deleting or len(replicas) != deployment.replicas:
        return False
    for replica in replicas:
        if replica.state is not ReplicaState.READY or replica.desired is not Desired.RUN or replica.is_leaving:
            return False
        node = nodes.get(replica.node_id)
        if replica.generation != deployment.generation or node is None or node.state is not NodeState.READY:
            return False
    return True


def is_held(verdict: Verdict, nodes: Mapping[NodeId, NodeView]) -> bool:
    """Return whether a lost replica is not placed anew yet, for its node's sake (`controller.fleet.brake`)."""
    node = nodes.get(verdict.replica.node_id)
    return verdict.bucket is Bucket.LOST and node is not None and node.is_held


def orphan_verdicts(replicas: Sequence[ReplicaView]) -> tuple[Verdict, ...]:
    """Return the buckets of replicas whose deployment does not exist any more."""
    return tuple(
        Verdict(replica=replica, bucket=Bucket.WAIT)
        if replica.desired is not Desired.RUN
        else Verdict(replica=replica, bucket=Bucket.STOP, reason="its deployment does not exist any more")
        for replica in replicas
    )


def _plain(deployment: DeploymentView, replica: ReplicaView, node: NodeView | None, want: int) -> Verdict | None:
    if replica.desired is not Desired.RUN:  # 1
        return Verdict(replica=replica, bucket=Bucket.WAIT)
    if want <= 0:  # 2
        reason = "the deployment is being deleted" if deployment.is_deleting else "the deployment wants no replicas"
        return Verdict(replica=replica, bucket=Bucket.STOP, reason=reason)
    if replica.state is ReplicaState.STOPPED:  # 3
        return Verdict(replica=replica, bucket=Bucket.STOP, reason="it has ended")
    # A node that is not in the picture is no proof that its engines ended: nothing is told to stop.
    if node is None or is_gone(node) or replica.state is ReplicaState.LOST:  # 4
        return Verdict(replica=replica, bucket=Bucket.LOST)
    return None


def _is_serving(replica: ReplicaView, nodes: Mapping[NodeId, NodeView]) -> bool:
    return replica.state is ReplicaState.READY and nodes[replica.node_id].state is NodeState.READY


def _worth(replica: ReplicaView, nodes: Mapping[NodeId, NodeView], now: datetime) -> tuple[int, datetime, ReplicaId]:
    """Sort key, best first: ready ones, then those that may become ready, then hopeless ones; the oldest first.

    Of ready ones those count last that were away with their node: a replacement that serves has the requests already,
    and its node was not the one to go silent. One that does not serve yet is behind every one that does, so that the
    original is kept and nothing is loaded twice.
    """
    if _is_serving(replica, nodes):
        rank = 1 if _was_away(replica, nodes[replica.node_id], now) else 0
    elif replica.state in _SERVED:
        rank = 2
    else:
        rank = 4 if replica.state is ReplicaState.CRASH_LOOP else 3
    return rank, replica.created_at, replica.replica_id


def _was_away(replica: ReplicaView, node: NodeView, now: datetime) -> bool:
    return node.returned_s is not None and replica.created_at < now - timedelta(seconds=node.returned_s)


def _current(living: Sequence[ReplicaView], want: int) -> list[Verdict]:
    kept = [
        Verdict(replica=replica, bucket=Bucket.START if replica.state in _MOVING else Bucket.KEEP)
        for replica in living[:want]
    ]
    reason = f"more replicas than the {want} wanted"
    return kept + [Verdict(replica=replica, bucket=Bucket.STOP, reason=reason) for replica in living[want:]]


def _groups(
    deployment: DeploymentView, replicas: Sequence[ReplicaView], nodes: Mapping[NodeId, NodeView], want: int
) -> tuple[list[Verdict], list[ReplicaView], list[ReplicaView], list[ReplicaView]]:
    """Return the verdicts that need no look at others, and the rest as staying, leaving and older ones."""
    verdicts: list[Verdict] = []
    current: list[ReplicaView] = []
    leaving: list[ReplicaView] = []
    older: list[ReplicaView] = []
    for replica in replicas:
        verdict = _plain(deployment, replica, nodes.get(replica.node_id), want)
        if verdict is not None:
            verdicts.append(verdict)
        elif replica.generation != deployment.generation:
            older.append(replica)
        else:
            (leaving if replica.is_leaving else current).append(replica)
    return verdicts, current, leaving, older


def _misplaced(
    current: Sequence[ReplicaView], leaving: Sequence[ReplicaView], nodes: Mapping[NodeId, NodeView]
) -> list[Verdict]:
    """Return the successors that do not serve and are not where their predecessor moves to now."""
    moving = {replica.replica_id: replica for replica in leaving}
    reason = "its predecessor moves to another node now"
    return [
        Verdict(replica=one, bucket=Bucket.STOP, reason=reason)
        for one in current
        if one.state is not ReplicaState.FAILED
        and one.succeeds in moving
        and (target := target_of(moving[one.succeeds], nodes)) is not None
        and target != one.node_id
        and not _is_serving(one, nodes)
    ]


def target_of(replica: ReplicaView, nodes: Mapping[NodeId, NodeView]) -> NodeId | None:
    """Return the only node that the successor of a leaving replica may be placed on, or None for any other one.

    A drain that is forced does not wait for the node that a replica was to move to.
    """
    node = nodes.get(replica.node_id)
    return None if node is not None and node.is_drain_forced else replica.move_to


def _leaving(
    leaving: Sequence[ReplicaView],
    living: Sequence[ReplicaView],
    unready: int,
    nodes: Mapping[NodeId, NodeView],
    now: datetime,
) -> list[Verdict]:
    """Return what becomes of the leaving replicas, of which `unready` are needed until others are ready.

    1. One that died and is to go anywhere goes at once: it protects nothing.
    2. Its successor serves: it goes.
    3. It stays while it is needed, those that serve before the others; the rest go.
    """
    relieved = {replica.succeeds for replica in living if _is_serving(replica, nodes)}
    verdicts: list[Verdict] = []
    kept = 0
    for replica in sorted(leaving, key=lambda one: _worth(one, nodes, now)):
        if replica.state in _DEAD and target_of(replica, nodes) is None:  # 1
            reason = "it does not run and is to leave its node"
        elif replica.replica_id in relieved:  # 2
            reason = "its successor is ready"
        elif kept < unready:  # 3
            kept += 1
            verdicts.append(Verdict(replica=replica, bucket=Bucket.REPLACE))
            continue
        else:
            reason = "it is to leave its node, and as many others as are wanted are ready"
        verdicts.append(Verdict(replica=replica, bucket=Bucket.STOP, reason=reason))
    return verdicts


def _failed(failed: Sequence[ReplicaView], unready: int) -> list[Verdict]:
    """Failed replicas hold no memory; they stay as the record of a node that cannot run this, until all are ready."""
    oldest = sorted(failed, key=lambda replica: (replica.created_at, replica.replica_id))
    limit = 2 * unready
    return [Verdict(replica=replica, bucket=Bucket.REPLACE) for replica in oldest[:limit]] + [
        Verdict(replica=replica, bucket=Bucket.STOP, reason="other replicas are ready") for replica in oldest[limit:]
    ]


def _older(
    older: Sequence[ReplicaView], unready: int, nodes: Mapping[NodeId, NodeView], now: datetime
) -> list[Verdict]:
    """Replicas of an older generation serve until as many of the new one are ready; those that never served go now."""
    verdicts = [
        Verdict(replica=replica, bucket=Bucket.STOP, reason="of an older generation and not serving")
        for replica in older
        if replica.state not in _SERVED
    ]
    serving = sorted(
        (replica for replica in older if replica.state in _SERVED),
        key=lambda replica: (_worth(replica, nodes, now)[0], replica.is_leaving, _worth(replica, nodes, now)),
    )
    verdicts += [Verdict(replica=replica, bucket=Bucket.REPLACE) for replica in serving[:unready]]
    return verdicts + [
        Verdict(replica=replica, bucket=Bucket.STOP, reason="replaced by a newer generation")
        for replica in serving[unready:]
    ]
