"""What one admin request sees: the tables of one instant together with the live state of nodes and doors.

Read once per request by the routes; handed to `controller.api.views`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from controller.deployments.model import Replica
from controller.deployments.waiting import Sight
from controller.exchange import ReplicaReport
from controller.fleet.model import NodeNow
from controller.reconcile.picture import Picture
from core.ids import NodeId, ReplicaId
from core.states import NodeState, PullState


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The picture of the database and, over it, what is known only in memory."""

    picture: Picture
    live: Mapping[NodeId, NodeNow]
    in_flight: Mapping[ReplicaId, int]

    def report(self, row: Replica) -> ReplicaReport | None:
        """Return the last words of a replica's node about it."""
        node = self.live.get(NodeId(row.node_id))
        reports = node.observation.replicas if node and node.observation else ()
        return next((one for one in reports if one.replica_id == row.replica_id), None)

    def sights(self, deployment_id: str) -> list[Sight]:
        """Return a deployment's replicas with all live numbers."""
        return [self.sight(row) for row in self.picture.replicas if row.deployment_id == deployment_id]

    def sight(self, row: Replica) -> Sight:
        """Return one replica with all live numbers."""
        node = self.live.get(NodeId(row.node_id))
        report = self.report(row)
        return Sight(
            replica=row,
            node_name=node.name if node else row.node_id,
            node_state=node.state if node else NodeState.LOST,
            silent_s=node.silent_s if node else None,
            fetched_share=_fetched_share(node),
            retry_in_s=report.retry_in_s if report else None,
            is_heard=node.is_heard if node else False,
        )


def _fetched_share(node: NodeNow | None) -> float | None:
    """Return how much of the files under way to a node has arrived, 0 to 1, or None when that is unknown."""
    files = node.observation.files if node and node.observation else ()
    moving = [one for one in files if one.state is PullState.RUNNING and one.bytes_total > 0]
    total = sum(one.bytes_total for one in moving)
    return sum(min(one.bytes_done, one.bytes_total) for one in moving) / total if total else None
