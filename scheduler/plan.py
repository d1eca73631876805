"""The brain: from one snapshot to what should change.

Pure and deterministic, whatever the order of the snapshot's tuples. Called by the controller's reconcile loop, which
commits the plan or throws it away; applying a plan and planning again gives an empty one. It keeps nothing between two
calls, reads no clock (`snapshot.now` is the time) and raises nothing.
"""

from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime

from core.ids import DeploymentId, DeviceId, NodeId, ReplicaId
from core.states import OCCUPYING, NodeState
from scheduler.feasible import (
    Choices,
    choices,
    no_other_node,
    refusal,
    refusal_before_nodes,
    tried_enough,
    why,
)
from scheduler.footprint import Ledger, held_bytes
from scheduler.moves import given_up, hopeless, is_over
from scheduler.outcome import GivenUp, NodeReason, Plan, Refusal, Start, Stop, Stuck
from scheduler.rank import Ranked, Standing
from scheduler.reconcile import Bucket, Sorting, grace_ends_at, is_held, orphan_verdicts, sorting, target_of
from scheduler.snapshot import (
    DeploymentView,
    DeviceView,
    NodeView,
    ReplicaView,
    Snapshot,
)

__all__ = [
    "DeploymentView",
    "DeviceView",
    "NodeReason",
    "NodeView",
    "Plan",
    "Refusal",
    "ReplicaView",
    "Snapshot",
    "Start",
    "Stop",
    "Stuck",
    "obstacle",
    "plan",
]


def plan(snapshot: Snapshot) -> Plan:
    """Return what should change; an instant in `wake_at` asks for another look then."""
    return _Planning(snapshot).plan()


def obstacle(snapshot: Snapshot, replica_id: ReplicaId, node_id: NodeId) -> Refusal | None:
    """Return why the node cannot take a successor of the replica now, or None when it can.

    Both must be in the picture, and the replica's deployment.
    """
    return _Planning(snapshot).obstacle(replica_id, node_id)


class _Planning:
    """One call of `plan`: the snapshot indexed, and the ledger and answers that grow while it goes on."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._nodes = tuple(sorted(snapshot.nodes, key=lambda node: node.node_id))
        self._by_id = {node.node_id: node for node in self._nodes}
        self._ledger = Ledger(snapshot)
        self._replicas: dict[DeploymentId, list[ReplicaView]] = {}
        for replica in sorted(snapshot.replicas, key=lambda one: one.replica_id):
            self._replicas.setdefault(replica.deployment_id, []).append(replica)
        self._starts: list[Start] = []
        self._stops: list[Stop] = []
        self._refusals: list[Refusal] = []
        self._stuck: list[Stuck] = []
        self._given_up: dict[ReplicaId, GivenUp] = {}
        self._held_back = 0
        self._standings: dict[Hashable, tuple[Standing, int]] = {}
        self._booked: list[NodeId] = []
        """The node of each start, in order; a standing knows how far it has read."""

    def plan(self) -> Plan:
        sorted_out = [(deployment, self._sorting(deployment)) for deployment in self._snapshot.deployments]
        # Deployments with nothing alive choose first, so that one more copy of another never keeps them out.
        sorted_out.sort(key=lambda pair: (_has_living(pair[1]), pair[0].deployment_id))
        for deployment, found in sorted_out:
            self._reconcile(deployment, found)
        known = {deployment.deployment_id for deployment in self._snapshot.deployments}
        for deployment_id in sorted(set(self._replicas) - known):
            for verdict in orphan_verdicts(self._replicas[deployment_id]):
                if verdict.bucket is Bucket.STOP:
                    self._stops.append(Stop(replica_id=verdict.replica.replica_id, reason=verdict.reason))
        return Plan(
            starts=tuple(self._starts),
            stops=tuple(sorted(self._stops, key=lambda stop: stop.replica_id)),
            refusals=tuple(self._refusals),
            wake_at=self._wake_at(),
            notes=self._notes(),
            stuck=tuple(sorted(self._stuck, key=lambda one: one.replica_id)),
            given_up=tuple(self._given_up[replica_id] for replica_id in sorted(self._given_up)),
        )

    def obstacle(self, replica_id: ReplicaId, node_id: NodeId) -> Refusal | None:
        replica = next(one for one in self._snapshot.replicas if one.replica_id == replica_id)
        owner = next(one for one in self._snapshot.deployments if one.deployment_id == replica.deployment_id)
        refused = refusal_before_nodes(owner, self._nodes)
        if refused is not None:
            return refused
        failed_on, need = self._sorting(owner).failed_on, owner.footprint.total_bytes or 0
        options = choices(owner, need, (self._by_id[node_id],), self._ledger, failed_on=failed_on)
        return None if options.candidates else why(owner, options)

    def _sorting(self, deployment: DeploymentView) -> Sorting:
        replicas = self._replicas.get(deployment.deployment_id, [])
        return sorting(deployment, replicas, self._by_id, self._snapshot.now)

    def _reconcile(self, deployment: DeploymentView, found: Sorting) -> None:
        for verdict in found.verdicts:
            if verdict.bucket is Bucket.STOP:
                self._stops.append(Stop(replica_id=verdict.replica.replica_id, reason=verdict.reason))
            elif verdict.bucket is Bucket.LOST:
                self._held_back += is_held(verdict, self._by_id)
        self._give_up(deployment, found)
        if not (found.missing or found.followed or found.exhausted):
            return
        neighbours = _neighbours(self._replicas.get(deployment.deployment_id, []))
        refused = refusal_before_nodes(deployment, self._nodes)
        if found.missing:
            missing = refused or self._place(deployment, found, neighbours)
            if missing is not None:
                self._refusals.append(missing)
        # What is missing altogether has the first choice: the leaving ones still serve.
        for replica in found.followed:
            stays = refused or self._follow(deployment, found, replica, neighbours)
            if stays is not None:
                self._stay(replica, stays)
        names = [node.name for node in self._nodes if node.node_id in found.failed_on]
        for replica in found.exhausted:
            self._stay(replica, tried_enough(deployment, names))

    def _give_up(self, deployment: DeploymentView, found: Sorting) -> None:
        """End the moves whose successor cannot run; what has no place yet has some patience left (`_stay`)."""
        others = self._replicas.get(deployment.deployment_id, [])
        for replica in found.of(Bucket.REPLACE):
            if not replica.is_leaving or replica.generation != deployment.generation:
                continue
            if target_of(replica, self._by_id) is None:
                continue
            ended = hopeless(replica, others, self._by_id)
            if ended is not None:
                successor, why_not = ended
                self._given_up[replica.replica_id] = given_up(deployment.deployment_id, replica, why_not, successor)

    def _place(self, deployment: DeploymentView, found: Sorting, neighbours: dict[NodeId, int]) -> Refusal | None:
        need = deployment.footprint.total_bytes or 0
        for placed in range(found.missing):
            standing = self._standing(deployment, need, found.failed_on)
            if not standing:
                options = choices(deployment, need, self._nodes, self._ledger, failed_on=found.failed_on)
                self._make_room(deployment, need, found, options)
                return refusal(deployment, options, placed=deployment.replicas - found.missing + placed)
            self._start(deployment, standing.best(neighbours), neighbours)
        return None

    def _standing(self, deployment: DeploymentView, need: int, failed_on: frozenset[NodeId]) -> Standing:
        """Return the candidates, best first, which deployments of one sort share.

        Only nodes that were booked since it was last asked for have less room now: the thousand others are not asked
        again.
        """
        sort = (deployment.engine, deployment.is_external, deployment.is_contained, deployment.node_name)
        key = (*sort, deployment.file_digests, need, failed_on)
        standing, known = self._standings.get(key, (None, 0))
        if standing is None:
            options = choices(deployment, need, self._nodes, self._ledger, failed_on=failed_on)
            standing = Standing(options.candidates, deployment)
        else:
            for node_id in dict.fromkeys(self._booked[known:]):
                again = choices(deployment, need, (self._by_id[node_id],), self._ledger, failed_on=failed_on)
                standing.renew(node_id, again.candidates)
        self._standings[key] = standing, len(self._booked)
        return standing

    def _follow(
        self, deployment: DeploymentView, found: Sorting, replica: ReplicaView, neighbours: dict[NodeId, int]
    ) -> Refusal | None:
        """Place the successor of a leaving replica, or return why it has none."""
        options = self._options(deployment, found, replica)
        if options.candidates:
            chosen = Standing(options.candidates, deployment).best(neighbours)
            self._start(deployment, chosen, neighbours, succeeds=replica.replica_id)
            return None
        return why(deployment, options) if options.dropped else no_other_node(deployment)

    def _options(self, deployment: DeploymentView, found: Sorting, replica: ReplicaView) -> Choices:
        target = target_of(replica, self._by_id)
        nodes = [node for node in self._nodes if node.node_id != replica.node_id and target in (None, node.node_id)]
        need = deployment.footprint.total_bytes or 0
        return choices(deployment, need, nodes, self._ledger, failed_on=found.failed_on)

    def _stay(self, replica: ReplicaView, refused: Refusal) -> None:
        node = self._by_id.get(replica.node_id)
        if node is not None and node.is_drain_forced:
            reason = f"its node is drained by force and nothing can take its place: {refused.message}"
            self._stops.append(Stop(replica_id=replica.replica_id, reason=reason))
        elif replica.replica_id in self._given_up:
            return
        elif is_over(replica, self._snapshot.now):
            self._given_up[replica.replica_id] = given_up(refused.deployment_id, replica, refused.message, None)
        else:
            self._stuck.append(Stuck(replica_id=replica.replica_id, refusal=refused))

    def _start(
        self,
        deployment: DeploymentView,
        chosen: Ranked,
        neighbours: dict[NodeId, int],
        *,
        succeeds: ReplicaId | None = None,
    ) -> None:
        node_id = chosen.candidate.node.node_id
        start = Start(
            deployment_id=deployment.deployment_id,
            generation=deployment.generation,
            node_id=node_id,
            promises={chosen.candidate.device.device_id: deployment.footprint.total_bytes or 0},
            reason=chosen.reason,
            succeeds=succeeds,
        )
        self._ledger.book(node_id, start.promises)
        self._booked.append(node_id)
        neighbours[node_id] = neighbours.get(node_id, 0) + 1
        self._starts.append(start)

    def _make_room(self, deployment: DeploymentView, need: int, found: Sorting, options: Choices) -> None:
        """Stop the fewest replicas of older generations without which the new one fits, if that is all that lacks.

        Leaving ones are no part of it: their node takes nothing, or they go where there is room. Nothing is stopped
        while earlier ones are still on their way out: their memory may be enough.
        """
        leaving = [*found.of(Bucket.WAIT), *found.of(Bucket.STOP)]
        if not options.is_short_of_memory or any(self._will_free_memory(replica) for replica in leaving):
            return
        freed: dict[tuple[NodeId, DeviceId], int] = {}
        chosen: list[Stop] = []
        for replica in sorted(found.of(Bucket.REPLACE), key=lambda one: (one.created_at, one.replica_id), reverse=True):
            if replica.state not in OCCUPYING or replica.is_leaving:
                continue
            chosen.append(Stop(replica_id=replica.replica_id, reason="makes room for its successor"))
            for device_id in replica.promises:
                key = (replica.node_id, device_id)
                freed[key] = freed.get(key, 0) + held_bytes(replica, device_id)
            again = choices(deployment, need, self._nodes, self._ledger, failed_on=found.failed_on, freed=freed)
            if again.candidates:
                self._stops += chosen
                return

    def _will_free_memory(self, replica: ReplicaView) -> bool:
        node = self._by_id.get(replica.node_id)
        return node is not None and node.state is NodeState.READY and replica.state in OCCUPYING

    def _wake_at(self) -> datetime | None:
        used = {replica.node_id for replica in self._snapshot.replicas}
        instants = [grace_ends_at(node, self._snapshot.now) for node in self._nodes if node.node_id in used]
        return min((instant for instant in instants if instant is not None), default=None)

    def _notes(self) -> tuple[str, ...]:
        if not self._held_back:
            return ()
        held = sum(1 for node in self._nodes if node.is_held)
        return (f"{self._held_back} replicas on {held} lost nodes are not replaced yet",)


def _has_living(found: Sorting) -> bool:
    return any(
        verdict.bucket in _LIVING or (verdict.bucket is Bucket.REPLACE and verdict.replica.is_leaving)
        for verdict in found.verdicts
    )


_LIVING = (Bucket.KEEP, Bucket.START)


def _neighbours(replicas: Sequence[ReplicaView]) -> dict[NodeId, int]:
    counts: dict[NodeId, int] = {}
    for replica in replicas:
        if replica.state in OCCUPYING:
            counts[replica.node_id] = counts.get(replica.node_id, 0) + 1
    return counts


def buckets(snapshot: Snapshot) -> Mapping[Bucket, tuple[ReplicaView, ...]]:
    """Return every replica of `snapshot` in its one bucket, for explanations and tests."""
    nodes = {node.node_id: node for node in snapshot.nodes}
    verdicts = list(
        orphan_verdicts(
            [
                replica
                for replica in snapshot.replicas
                if replica.deployment_id not in {deployment.deployment_id for deployment in snapshot.deployments}
            ]
        )
    )
    for deployment in snapshot.deployments:
        own = [replica for replica in snapshot.replicas if replica.deployment_id == deployment.deployment_id]
        verdicts += sorting(deployment, own, nodes, snapshot.now).verdicts
    return {bucket: tuple(verdict.replica for verdict in verdicts if verdict.bucket is bucket) for bucket in Bucket}
