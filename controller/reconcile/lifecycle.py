"""What a pass decides besides placement: pure.

Comes in: the picture, the live nodes, which replicas are drained. Goes out: `Steps`: draining replicas to stop, stopped
ones to forget, deployments to end, pulls to assign. Called by `controller.reconcile.loop`. A node's silence alone never
ends anything that should run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.deployments.model import Replica
from controller.fleet.model import NodeNow
from controller.reconcile.picture import Picture
from controller.registry.model import StoredPlace
from core.ids import NodeId, ReplicaId
from core.states import Desired, NodeState, ReplicaState

_DRAIN, _STOP = Desired.DRAIN.value, Desired.STOP.value
_MAY_SERVE = frozenset({ReplicaState.READY.value, ReplicaState.UNHEALTHY.value})


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What is to be written; `pulls` maps a pull to its new node (None: back to the queue), `relief` leaves stores."""

    stops: tuple[Replica, ...]
    gone: tuple[Replica, ...]
    ended: tuple[str, ...]
    pulls: Mapping[str, str | None]
    wake_at: datetime | None
    relief: tuple[StoredPlace, ...] = ()
    emptied: tuple[str, ...] = ()
    """Draining nodes whose last replica is among `gone`."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be written."""
        return not (self.stops or self.gone or self.ended or self.pulls or self.relief)


def steps(
    picture: Picture,
    live: Mapping[NodeId, NodeNow],
    *,
    now: datetime,
    lost_s: float,
    drain_timeout_s: float,
    is_drained: Callable[[ReplicaId], bool],
) -> Steps:
    """Return the next steps of everything that is on its way out or waits for a node."""
    timeout = timedelta(seconds=drain_timeout_s)
    draining = [row for row in picture.replicas if row.desired == _DRAIN]
    stops = tuple(
        row
        for row in draining
        if has_drained(
            row, live.get(NodeId(row.node_id)), now=now, lost_s=lost_s, timeout=timeout, is_drained=is_drained
        )
    )
    generations = {row.node_id: row.generation for row in picture.nodes}
    gone = tuple(
        row
        for row in picture.replicas
        if row.desired == _STOP
        and is_gone(row, live.get(NodeId(row.node_id)), generation=generations.get(row.node_id, 0), lost_s=lost_s)
    )
    gone_ids = {row.replica_id for row in gone}
    ending = [row.deployment_id for row in picture.deployments if row.is_deleting]
    held = {row.deployment_id for row in picture.replicas if row.replica_id not in gone_ids} if ending else set()
    stopping = {row.replica_id for row in stops}
    waits = [
        row.drain_since + timeout for row in draining if row.drain_since is not None and row.replica_id not in stopping
    ]
    return Steps(
        stops=stops,
        gone=gone,
        ended=tuple(deployment_id for deployment_id in ending if deployment_id not in held),
        pulls=_pull_moves(picture, live, lost_s),
        wake_at=min(waits, default=None),
        emptied=_emptied(picture, gone_ids),
    )


def _emptied(picture: Picture, gone_ids: set[str]) -> tuple[str, ...]:
    if not gone_ids:
        return ()
    left = {row.node_id for row in picture.replicas if row.replica_id not in gone_ids}
    touched = {row.node_id for row in picture.replicas if row.replica_id in gone_ids}
    return tuple(row.node_id for row in picture.nodes if row.drain_since is not None and row.node_id in touched - left)


def first_wish(row: Replica, node: NodeNow | None, lost_s: float) -> Desired:
    """Return how a replica that is no longer wanted begins to go: drained when it may be serving, else stopped."""
    if row.state in _MAY_SERVE and not is_past_lease(node, lost_s):
        return Desired.DRAIN
    return Desired.STOP


def is_past_lease(node: NodeNow | None, lost_s: float) -> bool:
    """Return whether a node has been silent for a whole lease, whether it said goodbye or not."""
    if node is None:
        return True
    return node.state is NodeState.LOST or (node.state is NodeState.OFFLINE and node.silent_s >= lost_s)


def has_drained(
    row: Replica,
    node: NodeNow | None,
    *,
    now: datetime,
    lost_s: float,
    timeout: timedelta,
    is_drained: Callable[[ReplicaId], bool],
) -> bool:
    """Return whether a draining replica may be stopped.

    1. It no longer serves, or its node is past its lease: there is nothing to wait for.
    2. Its time is over.
    3. Every living door has taken it out and has no stream on it.
    """
    if first_wish(row, node, lost_s) is Desired.STOP:
        return True
    if row.drain_since is not None and now - row.drain_since >= timeout:
        return True
    return is_drained(ReplicaId(row.replica_id))


def is_gone(row: Replica, node: NodeNow | None, *, generation: int, lost_s: float) -> bool:
    """Return whether the row of a replica that was told to stop may be deleted.

    1. Its node reports its whole process tree gone.
    2. Its node has applied the newest desired set and does not report it.
    A node's silence is neither: its engine may run, and what was promised to it is not free. The row stays until the
    node reports, or is forgotten.
    """
    if row.state == ReplicaState.STOPPED.value:
        return True
    if node is None or not node.is_heard or node.observation is None or is_past_lease(node, lost_s):
        return False
    is_reported = any(report.replica_id == row.replica_id for report in node.observation.replicas)
    return not is_reported and node.observation.applied_generation >= generation


def _pull_moves(picture: Picture, live: Mapping[NodeId, NodeNow], lost_s: float) -> dict[str, str | None]:
    open_pulls = [pull for pull in picture.pulls if pull.finished_at is None]
    if not open_pulls:
        return {}
    cordoned = {row.node_id for row in picture.nodes if row.is_cordoned or not row.is_approved}
    ready = [node for node in live.values() if node.state is NodeState.READY and node.node_id not in cordoned]
    # The emptiest disk first; the name makes it the same choice each time.
    ready.sort(key=lambda node: (-node.disk_free_bytes, node.name))
    target = ready[0].node_id if ready else None
    moves: dict[str, str | None] = {}
    for pull in open_pulls:
        is_orphan = pull.node_id is None or is_past_lease(live.get(NodeId(pull.node_id)), lost_s)
        if is_orphan and pull.node_id != target:
            moves[pull.pull_id] = target
    return moves
