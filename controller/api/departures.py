"""How a replica that is to leave its node, and a node that drains, look in the admin API: pure.

Called by `controller.api.views`.
"""

from dataclasses import dataclass
from typing import Any

from controller.api.seeing import Seen
from controller.deployments.model import Replica
from controller.fleet.model import NodeRow
from core.ids import NodeId, ReplicaId
from core.states import Desired, ReplicaState

Json = dict[str, Any]


def leaving(row: Replica, seen: Seen) -> Json | None:
    """Return where a replica goes and what it waits for, or None when it stays."""
    if not row.is_leaving:
        return None
    successor = _successor(row, seen)
    return {
        "to": _name(row.move_to, seen) if row.move_to else None,
        "successor": successor.replica_id if successor else None,
        "waiting": waiting(row, successor, seen),
        "refusal": dict(row.stuck) or None,
    }


@dataclass(frozen=True, kw_only=True)
class Remaining:
    """A replica that a draining node holds still; `waiting` says what for."""

    replica_id: str
    deployment: str
    waiting: str
    is_stuck: bool


def remaining(node_id: NodeId, seen: Seen) -> tuple[Remaining, ...]:
    """Return every replica of a node that drains."""
    names = {one.deployment_id: one.name for one in seen.picture.deployments}
    return tuple(
        Remaining(
            replica_id=one.replica_id,
            deployment=names[one.deployment_id],
            waiting=waiting(one, _successor(one, seen), seen),
            is_stuck=bool(one.stuck),
        )
        for one in seen.picture.replicas
        if one.node_id == node_id
    )


def drain(row: NodeRow, seen: Seen, *, since: str | None) -> Json | None:
    """Return how far a node's drain is, or None when it does not drain."""
    if since is None:
        return None
    return {
        "since": since,
        "is_forced": row.is_drain_forced,
        "replicas": [
            {"id": one.replica_id, "deployment": one.deployment, "waiting": one.waiting, "is_stuck": one.is_stuck}
            for one in remaining(NodeId(row.node_id), seen)
        ],
    }


def waiting(row: Replica, successor: Replica | None, seen: Seen) -> str:
    """Return one sentence: what a replica that leaves waits for.

    1. It is told to go already: its streams, then its engine's end.
    2. Its node is silent: it has been replaced, and only the node can say that it ended.
    3. It has a successor, which is not ready.
    4. Nothing can take its place.
    5. Nothing is in its way but that others of its deployment have to be ready.
    """
    if row.desired == Desired.DRAIN.value:
        count = seen.in_flight.get(ReplicaId(row.replica_id), 0)
        return f"the doors let go of it; {count} stream{'s' if count != 1 else ''} in flight"
    if row.desired == Desired.STOP.value:
        return "its engine is being stopped"
    if row.state == ReplicaState.LOST.value:
        return "its node is silent; it is gone when that node returns or is forgotten"
    if successor is not None:
        because = f": {successor.message}" if successor.message else ""
        return f"its successor on node {_name(successor.node_id, seen)} is {successor.state}{because}"
    return str(row.stuck.get("message", "")) or "others of its deployment are not ready yet"


def _successor(row: Replica, seen: Seen) -> Replica | None:
    found = [
        one
        for one in seen.picture.replicas
        if one.succeeds == row.replica_id
        and one.desired == Desired.RUN.value
        and one.state != ReplicaState.FAILED.value
    ]
    return found[-1] if found else None


def _name(node_id: str, seen: Seen) -> str:
    node = seen.live.get(NodeId(node_id))
    return node.name if node else node_id
