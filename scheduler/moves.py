"""When a move is given up: its successor cannot run on the node that an operator named. Pure.

In: a leaving replica, its deployment's others. Out: half a sentence, or None while there is hope. Called by
`scheduler.plan`. A drain is never given up: there the wish is an empty node, and any other will do.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from core.ids import DeploymentId, NodeId, ReplicaId
from core.states import Desired, ReplicaState
from scheduler.outcome import GivenUp, Refusal
from scheduler.snapshot import NodeView, ReplicaView

MOVE_RESTARTS = 3
"""Starts of a successor after its first that may fail. A crash loop says the same of an engine that dies fast."""
MOVE_PATIENCE_S = 600.0
"""How long the named node may be unable to take a successor: a reboot with a look at its disks is shorter."""


def hopeless(
    replica: ReplicaView, others: Sequence[ReplicaView], nodes: Mapping[NodeId, NodeView]
) -> tuple[ReplicaId, str] | None:
    """Return the successor that cannot run where `replica` is to move, and why, or None.

    1. It cannot run there at all. 2. It crash-loops. 3. It has died as often as a successor may.
    """
    for other in others:
        if other.succeeds != replica.replica_id or other.desired is not Desired.RUN or other.node_id != replica.move_to:
            continue
        node = nodes.get(other.node_id)
        where = f"its successor on node {node.name if node else other.node_id}"
        if other.state is ReplicaState.FAILED:  # 1
            return other.replica_id, f"{where} cannot run there"
        if other.state is ReplicaState.CRASH_LOOP:  # 2
            return other.replica_id, f"{where} died too often"
        if other.state is ReplicaState.BACKOFF and other.restarts >= MOVE_RESTARTS:  # 3
            return other.replica_id, f"{where} died {other.restarts + 1} times"
    return None


def is_over(replica: ReplicaView, now: datetime) -> bool:
    """Return whether a replica that nothing can take the place of where it is to move has waited long enough."""
    return (
        replica.move_to is not None
        and replica.move_since is not None
        and now - replica.move_since >= timedelta(seconds=MOVE_PATIENCE_S)
    )


def given_up(deployment_id: DeploymentId, replica: ReplicaView, why: str, successor: ReplicaId | None) -> GivenUp:
    """Return that a replica's move is given up, and why."""
    return GivenUp(
        replica_id=replica.replica_id,
        successor=successor,
        refusal=Refusal(
            deployment_id=deployment_id,
            code="replica.move_given_up",
            message=f"the move was given up: {why}",
            hint=f"it serves on where it is; cure that, then `slice move {replica.replica_id} --to NODE` again",
            nodes=(),
            cured_by=frozenset(),
        ),
    )
