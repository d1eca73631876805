"""The reconcile loop of one controller in the simulation: absorb, look, send, publish, plan, and later commit.

The twin of `controller.reconcile.loop`, `absorb`, `dispatch` and `commit`, which are bound to asyncio and SQL: it calls
the same pure functions in the same order, and a pass takes time. What is made of rows alone is kept until a row is
written: a thousand nodes are looked at in each pass, and few of them have changed.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from controller.deployments import mirror
from controller.deployments.model import Replica
from controller.fleet.model import DesiredSet, NodeNow, ReplicaOrder
from controller.reconcile import picture as pictures
from controller.reconcile.dispatch import numbered
from controller.reconcile.lifecycle import Steps, first_wish, is_past_lease, steps
from controller.reconcile.picture import Picture
from controller.routes.model import RoutableReplica
from controller.routes.table import chosen
from core.errors import Failure
from core.ids import NodeId, ReplicaId
from core.states import SERVING, Desired, NodeState
from scheduler.outcome import Plan
from scheduler.plan import plan
from tests.scenarios import fleet
from tests.scenarios.database import LeadershipLost
from tests.scenarios.world import EPOCH

if TYPE_CHECKING:
    from tests.scenarios.control import Controller

RETRY_S, IDLE_S, DRAIN_S, REFUSED_S = 1.0, 15.0, 30.0, 3.0
Target = tuple[NodeId, ReplicaId, int, int]
_RUN = Desired.RUN.value
_SERVING = frozenset(state.value for state in SERVING)


class _Routable(NamedTuple):
    """A serving row with what it was made routable from, and as what."""

    row: Replica
    node_state: NodeState
    is_past: bool
    view: RoutableReplica


class Loop:
    """Owns every decision of one life of a controller."""

    def __init__(self, controller: "Controller") -> None:
        self._controller, self._cluster = controller, controller.cluster
        self._world, self._database = controller.world, controller.database
        self._lost_s = controller.timers.lost_s
        self._is_dirty, self._is_busy = True, False
        self.due = 0.0
        self.table: dict[str, tuple[Target, ...]] = {}
        self._views = pictures.Views()
        self._digests: dict[str, tuple[int, str]] = {}
        self._routable: dict[str, _Routable] = {}

    def forget(self) -> None:
        """Let go of what was kept of rows: no collector runs, and a controller and its loop know each other."""
        self._views, self._digests, self._routable, self.table = pictures.Views(), {}, {}, {}

    def wake(self) -> None:
        """Ask for a pass."""
        self._is_dirty = True
        if not self._is_busy and self._controller.is_serving:
            self._is_busy = True
            self._controller.after(self._cluster.shape.pass_every_s, self._look)

    def _look(self) -> None:
        controller = self._controller
        self._is_dirty = False
        self.due = self._world.now + IDLE_S
        try:
            live = self.live()
            self._absorb(live)
            self._database.reach()
            picture = self.picture()
            # Nothing came in between, so that only another look at the leases can find anything else.
            leases = controller.leases
            before = leases.brake
            if leases.look(self._world.now) or leases.brake is not before:
                live = self.live()
            self._dispatch(picture, live)
            self._publish(picture, live)
        except Failure:
            self._failed()
            return
        except LeadershipLost:
            controller.die()
            return
        now = controller.wall()
        planned = plan(self._views.seen(picture, live, now=now, cpu_reserve_bytes=0))
        following = steps(
            picture,
            live,
            now=now,
            lost_s=self._lost_s,
            drain_timeout_s=DRAIN_S,
            is_drained=self._cluster.door.is_drained,
        )
        # A pass takes time: what it decided from may have changed, and another may reign, when it is committed.
        wait_s = 0.01 + self._world.chance.random() * 0.1
        controller.after(wait_s, self._commit, picture, live, planned, following)

    def _failed(self) -> None:
        self._controller.leases.storage_is(up=False, now=self._world.now)
        self._is_busy = False
        self._controller.after(RETRY_S, self.wake)

    def live(self) -> dict[NodeId, NodeNow]:
        """Return every node as it is known now."""
        controller = self._controller
        return fleet.nodes(controller.leases, controller.entries, controller.peers, self._world.now)

    # -- what nodes say is written, and what is wanted is sent ----------------------------------------------------

    def _absorb(self, live: dict[NodeId, NodeNow]) -> None:
        entries, lost_s = self._controller.entries, self._lost_s
        for node_id, node in live.items():
            entry = entries[node_id]
            mark = (node.session_epoch, node.observed_version)
            state = (node.state, is_past_lease(node, lost_s))
            if entry.written == mark and entry.state_written == state:
                continue
            rows = list(self._database.by_node.get(node_id, {}).values())
            self._absorb_one(node, state, rows, is_changed=entry.written != mark)
            entry.written, entry.state_written = mark, state

    def _absorb_one(
        self, node: NodeNow, state: tuple[NodeState, bool], rows: list[Replica], *, is_changed: bool
    ) -> None:
        database, epoch = self._database, self._controller.epoch
        entry = self._controller.entries[node.node_id]
        if state[1]:
            for row in rows:
                change = mirror.lost(row, node.name)
                if change is not None:
                    database.mirror(epoch, row, change)
            return
        was_lost = entry.state_written is not None and entry.state_written[1]
        if node.observation is None or not node.is_heard or not (is_changed or was_lost):
            return
        generation = database.nodes[node.node_id].generation
        is_applied = node.observation.applied_generation >= generation > 0
        reports = {report.replica_id: report for report in node.observation.replicas}
        for row in rows:
            change = mirror.mirrored(row, reports.get(ReplicaId(row.replica_id)), is_applied=is_applied)
            if change is not None:
                database.mirror(epoch, row, change)

    def picture(self) -> Picture:
        """Return all rows as they are now."""
        database = self._database
        return Picture(
            nodes=tuple(database.nodes.values()),
            node_files={},
            deployments=tuple(database.deployments.values()),
            replicas=tuple(database.replicas.values()),
            refusals=(),
            files={},
            sources={},
            pulls=(),
            keys=(),
            aliases=(),
        )

    def _dispatch(self, picture: Picture, live: dict[NodeId, NodeNow]) -> None:
        controller, database = self._controller, self._database
        for row in picture.nodes:
            node = live.get(NodeId(row.node_id))
            if node is None or not node.is_connected:
                continue
            digest = self._digest(row.node_id)
            generation, is_new = numbered(
                row.generation, is_changed=digest != row.desired_digest, applied_generation=node.applied_generation
            )
            if is_new and not database.set_desired(controller.epoch, row.node_id, generation, digest):
                continue
            if is_new or node.sent_generation != generation:
                entry = controller.entries[node.node_id]
                entry.sent = generation
                orders = tuple(map(_order, database.by_node.get(row.node_id, {}).values()))
                desired = DesiredSet(leader_epoch=controller.epoch, generation=generation, replicas=orders, files=())
                controller.say(controller.peers[entry.stream].session, entry.stream, desired)

    def _digest(self, node_id: str) -> str:
        """Return what is wanted of a node, in short."""
        writes = self._database.writes.get(node_id, 0)
        known = self._digests.get(node_id)
        if known is None or known[0] != writes:
            rows = self._database.by_node.get(node_id, {}).values()
            known = self._digests[node_id] = (writes, " ".join(f"{one.replica_id}:{one.desired}" for one in rows))
        return known[1]

    # -- what doors are told --------------------------------------------------------------------------------------

    def _publish(self, picture: Picture, live: dict[NodeId, NodeNow]) -> None:
        by_deployment: dict[str, list[RoutableReplica]] = {}
        for row, view in self._serving(picture.replicas, live):
            by_deployment.setdefault(row.deployment_id, []).append(view)
        self.table = {
            deployment_id: tuple(map(_target, chosen(views))) for deployment_id, views in by_deployment.items()
        }

    def _serving(
        self, rows: Iterable[Replica], live: dict[NodeId, NodeNow]
    ) -> Iterable[tuple[Replica, RoutableReplica]]:
        lost_s, known = self._lost_s, self._routable
        states = {node_id: (node.state, is_past_lease(node, lost_s)) for node_id, node in live.items()}
        for row in rows:
            if row.desired != _RUN or row.state not in _SERVING:
                continue
            state, is_past = states.get(NodeId(row.node_id), (NodeState.LOST, True))
            last = known.get(row.replica_id)
            if last is None or last.row is not row or last.node_state is not state or last.is_past is not is_past:
                view = _routable(row, state, is_past=is_past)
                last = known[row.replica_id] = _Routable(row, state, is_past, view)
            yield row, last.view

    # -- what was decided is written ------------------------------------------------------------------------------

    def _commit(self, picture: Picture, live: dict[NodeId, NodeNow], planned: Plan, following: Steps) -> None:
        self._is_busy = False
        database = self._database
        has_changed = False
        try:
            if not (planned.is_empty and following.is_empty):
                replicas = {row.replica_id: row for row in picture.replicas}
                database.fenced(self._controller.epoch)
                # One transaction: a deployment that has moved on makes all of it stale.
                generations = {row.deployment_id: row.generation for row in picture.deployments}
                touched = {start.deployment_id for start in planned.starts}
                touched |= {replicas[stop.replica_id].deployment_id for stop in planned.stops}
                if any(
                    one not in database.deployments or database.deployments[one].generation != generations[one]
                    for one in touched
                ):
                    self.wake()
                    return
                has_changed = self._write(live, planned, following, replicas)
        except Failure:
            self._failed()
            return
        except LeadershipLost:
            self._controller.die()
            return
        self._cluster.passes += 1
        self._controller.leases.storage_is(up=True, now=self._world.now)
        for instant in (planned.wake_at, following.wake_at):
            if instant is not None:
                self.due = min(self.due, (instant - EPOCH).total_seconds() - self._controller.wall_offset_s)
        if planned.refusals:
            self.due = min(self.due, self._world.now + REFUSED_S)
        if has_changed or self._is_dirty:
            self.wake()

    def _write(
        self, live: dict[NodeId, NodeNow], planned: Plan, following: Steps, replicas: dict[str, Replica]
    ) -> bool:
        database, epoch, has_changed = self._database, self._controller.epoch, False
        for start in planned.starts:
            promises = {str(device): count for device, count in start.promises.items()}
            has_changed |= database.start(epoch, start.deployment_id, start.generation, start.node_id, promises)
        for stop in planned.stops:
            row = replicas[stop.replica_id]
            if row.desired == _RUN:
                wish = first_wish(row, live.get(NodeId(row.node_id)), self._lost_s)
                has_changed |= database.wish(epoch, row.replica_id, row.desired, wish)
        for row in following.stops:
            has_changed |= database.wish(epoch, row.replica_id, row.desired, Desired.STOP)
        for row in following.gone:
            if database.forget(epoch, row.replica_id):
                has_changed = True
                self._cluster.forgotten(row)
        for deployment_id in following.ended:
            has_changed |= self._cluster.ended(deployment_id)
        return has_changed


def _order(row: Replica) -> ReplicaOrder:
    return ReplicaOrder(
        replica_id=ReplicaId(row.replica_id),
        deployment=row.deployment_id,
        served_name=row.deployment_id,
        engine="fake",
        engine_version="1",
        settings={},
        files=(),
        promises=row.promises,  # type: ignore[arg-type]
        desired=Desired(row.desired),
    )


def _routable(row: Replica, node_state: NodeState, *, is_past: bool) -> RoutableReplica:
    return RoutableReplica(
        replica_id=ReplicaId(row.replica_id),
        incarnation=row.incarnation,
        host=row.host,
        port=row.port,
        node_state=node_state,
        is_silent_past_lease=is_past,
        version=1,
        node_id=row.node_id,
    )


def _target(one: RoutableReplica) -> Target:
    return NodeId(one.node_id), one.replica_id, one.incarnation, one.port
