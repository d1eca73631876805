"""One controller in the simulation: the leases, the planner, the steps of lifecycle and the mirror are the real ones.

What is here stands for `controller.fleet.service`, `controller.reconcile.loop`, `absorb`, `dispatch` and `commit`,
which are bound to asyncio and SQL: it calls the same pure functions in the same order, and a pass takes time.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controller.deployments import mirror
from controller.deployments.model import Replica
from controller.fleet import lease as machine
from controller.fleet import session as protocol
from controller.fleet.lease import Timers
from controller.fleet.leases import Leases
from controller.fleet.model import (
    Ack,
    DesiredSet,
    Goodbye,
    Hello,
    NodeMessage,
    NodeNow,
    NodeRow,
    Refuse,
    ReplicaOrder,
    Welcome,
)
from controller.fleet.significance import significant
from controller.reconcile import picture as pictures
from controller.reconcile.dispatch import numbered
from controller.reconcile.lifecycle import Steps, first_wish, is_past_lease, steps
from controller.reconcile.picture import Picture
from controller.routes.model import RoutableReplica
from controller.routes.table import chosen
from core.devices import DeviceReading
from core.errors import Failure
from core.ids import NodeId, ReplicaId
from core.states import SERVING, Desired, NodeState, ReplicaState
from scheduler.outcome import Plan
from scheduler.plan import plan
from tests.scenarios.database import LeadershipLost
from tests.scenarios.world import EPOCH, Process

if TYPE_CHECKING:
    from tests.scenarios.cluster import Cluster
    from tests.scenarios.session import Session

RENEW_S, RETRY_S, IDLE_S, DRAIN_S = 2.0, 1.0, 15.0, 30.0
Target = tuple[NodeId, ReplicaId, int, int]
_FACTS = ({"engine": "fake", "is_usable": True, "device_kinds": ["cpu", "nvidia"], "reason": ""},)


@dataclass(kw_only=True)
class Peer:
    """One stream at this end."""

    session: "Session"
    node_id: NodeId
    epoch: int
    # The simulated node agents speak the first protocol: their heartbeats carry readings.
    state: protocol.SessionState = field(default_factory=lambda: protocol.SessionState(protocol=1))


@dataclass(kw_only=True)
class Entry:
    """The live half of one node."""

    stream: int = 0
    devices: tuple[DeviceReading, ...] = ()
    observation: object = None
    matter: object = None
    version: int = 0
    written: tuple[int, int] = (0, 0)
    state_written: tuple[NodeState, bool] | None = None
    applied: int = 0
    sent: int = 0
    epoch: int = 0
    boot_id: str = ""
    serial: int = 0


class Controller(Process):
    """One life of a controller's process."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        super().__init__(cluster.world)
        self.cluster, self.name, self.database = cluster, name, cluster.database
        self.timers = Timers(heartbeat_s=cluster.shape.heartbeat_s)
        self.epoch = 0
        self.is_serving = False
        self.leases = Leases(self.timers, self.world.now)
        self.entries: dict[NodeId, Entry] = {}
        self.peers: dict[int, Peer] = {}
        self.table: dict[str, tuple[Target, ...]] = {}
        self._is_dirty, self._is_busy, self._due = True, False, 0.0

    # -- its life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Try to lead until it does."""
        try:
            epoch = self.database.acquire(self.name)
        except Failure:
            epoch = None
        if epoch is None:
            self.after(RETRY_S, self.start)
            return
        self.epoch = epoch
        self.leases = Leases(self.timers, self.world.now)
        for row in self.database.nodes.values():
            node_id = NodeId(row.node_id)
            self.leases.add(node_id, has_left=row.state == NodeState.OFFLINE.value)
            self.entries[node_id] = Entry(epoch=row.session_epoch)
        self.is_serving = True
        self.after(self.timers.tick_s, self._tick)
        self.after(RENEW_S, self._renew)
        self._due = self.world.now + IDLE_S
        self.wake()

    def die(self) -> None:
        """End; the streams break, for those who are told."""
        self.is_alive = self.is_serving = False
        for stream, peer in self.peers.items():
            self.cluster.tell_broken(self.name, peer.session, stream)
        self.cluster.died(self)

    def _renew(self) -> None:
        try:
            self.database.renew(self.name, self.epoch)
            self.leases.storage_is(up=True, now=self.world.now)
        except Failure:
            self.leases.storage_is(up=False, now=self.world.now)
        except LeadershipLost:
            self.die()
            return
        self.after(RENEW_S, self._renew)

    def _tick(self) -> None:
        before = self.leases.brake
        if self.leases.look(self.world.now) or self.leases.brake is not before or self.world.now >= self._due:
            self.wake()
        self.after(min(1.0, self.timers.tick_s), self._tick)

    # -- sessions -------------------------------------------------------------------------------------------------

    def hello(self, session: "Session", stream: int, hello: Hello, serial: int) -> None:
        """Take a node in, or refuse it."""
        if not self.is_serving:
            return
        node_id, entry = hello.node_id, self.entries.get(hello.node_id)
        living = self._living(node_id, entry)
        leader_epoch = self.epoch if self.world.fences.leader_epoch else 1 << 60
        refusal = protocol.admission(hello, leader_epoch=leader_epoch, living=living)
        if refusal is None:
            try:
                row = self.database.upsert_node(_row(hello), session.total_bytes)
            except Failure as failure:
                if entry is not None:
                    self.leases.happened(node_id, machine.Knocked(), self.world.now)
                refusal = Refuse(code=failure.code, message=failure.message, retry_after_ms=2000)
        if refusal is not None:
            self._say(session, stream, refusal)
            return
        for effect in self.leases.happened(node_id, machine.Opened(row.session_epoch), self.world.now):
            if isinstance(effect, machine.Stale):
                self._say(session, stream, Refuse(code="node.stale_sequence", message="a newer one was faster"))
                return
            if isinstance(effect, machine.CloseStream) and entry is not None and entry.stream in self.peers:
                older = self.peers[entry.stream]
                self._say(older.session, entry.stream, Refuse(code="node.stale_sequence", message="a newer one"))
        entry = self.entries.setdefault(node_id, Entry())
        self.peers[stream] = Peer(session=session, node_id=node_id, epoch=row.session_epoch)
        entry.stream, entry.epoch, entry.sent, entry.boot_id = stream, row.session_epoch, 0, hello.boot_id
        entry.devices = session.devices()
        entry.applied, entry.serial = hello.observation.applied_generation, serial
        entry.observation, entry.matter = hello.observation, significant(hello.observation)
        entry.version += 1
        welcome = Welcome(
            leader_epoch=self.epoch,
            session_epoch=row.session_epoch,
            heartbeat_ms=int(self.timers.heartbeat_s * 1000),
            lease_ms=int(self.timers.lost_s * 1000),
            fence_ms=int(self.timers.fence_s * 1000),
        )
        self._say(session, stream, welcome)
        self.wake()

    def _living(self, node_id: NodeId, entry: Entry | None) -> protocol.Living | None:
        if entry is None or entry.stream not in self.peers:
            return None
        state = self.leases.state(node_id)
        if state not in (NodeState.READY, NodeState.SUSPECT):
            return None
        is_heard = state is NodeState.READY
        return protocol.Living(machine_id=f"m-{node_id}", boot_id=entry.boot_id, is_heard=is_heard)

    def take(self, stream: int, message: NodeMessage, serial: int) -> None:
        """Take one message of a node."""
        peer = self.peers.get(stream)
        if peer is None:
            return
        entry = self.entries[peer.node_id]
        epoch = peer.epoch if self.world.fences.session_epoch else self.leases.lease(peer.node_id).stream
        said = machine.Left(epoch) if isinstance(message, Goodbye) else machine.Heard(epoch)
        effects = self.leases.happened(peer.node_id, said, self.world.now)
        if effects:
            if machine.Stale() in effects:
                return
            self.wake()
        if serial < entry.serial:
            self.world.violated("what is known never goes back", f"{peer.node_id} said {serial} after {entry.serial}")
        entry.serial = serial
        peer.state, answers = protocol.step(peer.state, message)
        for answer in answers:
            if isinstance(answer, Ack | Refuse):
                self._say(peer.session, stream, answer)
            elif isinstance(answer, protocol.Telemetry):
                entry.devices = answer.devices
            elif isinstance(answer, protocol.Applied):
                entry.applied = max(entry.applied, answer.generation)
            elif isinstance(answer, protocol.Observe):
                observed = answer.observation
                entry.observation = observed
                entry.applied = max(entry.applied, observed.applied_generation)
                matter = significant(observed)
                if matter != entry.matter:
                    entry.matter = matter
                    entry.version += 1
                    self.wake()

    def ended(self, stream: int) -> None:
        """Note the end of a stream."""
        peer = self.peers.pop(stream, None)
        if peer is not None:
            self.leases.happened(peer.node_id, machine.Ended(peer.epoch), self.world.now)
            if self.entries[peer.node_id].stream == stream:
                self.entries[peer.node_id].stream = 0

    def _say(self, session: "Session", stream: int, message: object) -> None:
        way = (self.name, str(session.node_id))
        is_repeatable = isinstance(message, DesiredSet)
        self.cluster.network.send(
            way, stream, session.agent, session.take, stream, message, is_repeatable=is_repeatable
        )

    # -- the loop -------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Ask for a pass."""
        self._is_dirty = True
        if not self._is_busy and self.is_serving:
            self._is_busy = True
            self.after(self.cluster.shape.pass_every_s, self._look)

    def _look(self) -> None:
        self._is_dirty = False
        self._due = self.world.now + IDLE_S
        try:
            live = self._live()
            self._absorb(live)
            self.database.reach()
            picture = self._picture()
            live = self._live()
            self._dispatch(picture, live)
            self._publish(picture, live)
        except Failure:
            self._failed()
            return
        except LeadershipLost:
            self.die()
            return
        now, lost_s = self.wall(), self.timers.lost_s
        planned = plan(pictures.seen(picture, live, now=now, cpu_reserve_bytes=0))
        following = steps(
            picture, live, now=now, lost_s=lost_s, drain_timeout_s=DRAIN_S, is_drained=self.cluster.door.is_drained
        )
        # A pass takes time: what it decided from may have changed, and another may reign, when it is committed.
        self.after(0.01 + self.world.chance.random() * 0.1, self._commit, picture, live, planned, following)

    def _failed(self) -> None:
        self.leases.storage_is(up=False, now=self.world.now)
        self._is_busy = False
        self.after(RETRY_S, self.wake)

    def _live(self) -> dict[NodeId, NodeNow]:
        now, leases = self.world.now, self.leases
        leases.look(now)
        held = leases.brake.held
        return {
            node_id: NodeNow(
                node_id=node_id,
                name=str(node_id),
                state=leases.state(node_id),
                silent_s=leases.silent_s(node_id, now),
                is_heard=leases.lease(node_id).heard_at is not None,
                is_connected=entry.stream in self.peers,
                devices=entry.devices,
                disk_free_bytes=0,
                applied_generation=entry.applied,
                sent_generation=entry.sent,
                session_epoch=entry.epoch,
                observation=entry.observation,  # type: ignore[arg-type]
                observed_version=entry.version,
                is_held=node_id in held,
                is_flapping=leases.is_flapping(node_id, now),
                returned_s=leases.returned_s(node_id, now),
            )
            for node_id, entry in self.entries.items()
        }

    def _absorb(self, live: dict[NodeId, NodeNow]) -> None:
        by_node: dict[str, list[Replica]] | None = None
        for node_id, node in live.items():
            entry = self.entries[node_id]
            mark = (node.session_epoch, node.observed_version)
            state = (node.state, is_past_lease(node, self.timers.lost_s))
            if entry.written == mark and entry.state_written == state:
                continue
            if by_node is None:
                by_node = {}
                for row in self.database.replicas.values():
                    by_node.setdefault(row.node_id, []).append(row)
            self._absorb_one(node, state, by_node.get(str(node_id), []), is_changed=entry.written != mark)
            entry.written, entry.state_written = mark, state

    def _absorb_one(
        self, node: NodeNow, state: tuple[NodeState, bool], rows: list[Replica], *, is_changed: bool
    ) -> None:
        entry = self.entries[node.node_id]
        if state[1]:
            for row in rows:
                change = mirror.lost(row, node.name)
                if change is not None:
                    self.database.mirror(self.epoch, row, change)
            return
        was_lost = entry.state_written is not None and entry.state_written[1]
        if node.observation is None or not node.is_heard or not (is_changed or was_lost):
            return
        generation = self.database.nodes[node.node_id].generation
        is_applied = node.observation.applied_generation >= generation > 0
        reports = {report.replica_id: report for report in node.observation.replicas}
        for row in rows:
            change = mirror.mirrored(row, reports.get(ReplicaId(row.replica_id)), is_applied=is_applied)
            if change is not None:
                self.database.mirror(self.epoch, row, change)

    def _picture(self) -> Picture:
        database = self.database
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
        by_node: dict[str, list[Replica]] = {}
        for replica in picture.replicas:
            by_node.setdefault(replica.node_id, []).append(replica)
        for row in picture.nodes:
            node = live.get(NodeId(row.node_id))
            if node is None or not node.is_connected:
                continue
            rows = by_node.get(row.node_id, [])
            digest = " ".join(f"{one.replica_id}:{one.desired}" for one in rows)
            generation, is_new = numbered(
                row.generation, is_changed=digest != row.desired_digest, applied_generation=node.applied_generation
            )
            if is_new and not self.database.set_desired(self.epoch, row.node_id, generation, digest):
                continue
            if is_new or node.sent_generation != generation:
                entry = self.entries[node.node_id]
                entry.sent = generation
                desired = DesiredSet(
                    leader_epoch=self.epoch, generation=generation, replicas=tuple(map(_order, rows)), files=()
                )
                self._say(self.peers[entry.stream].session, entry.stream, desired)

    def _publish(self, picture: Picture, live: dict[NodeId, NodeNow]) -> None:
        routable: dict[str, list[RoutableReplica]] = {}
        places: dict[str, Replica] = {}
        for row in picture.replicas:
            if row.desired != Desired.RUN.value or ReplicaState(row.state) not in SERVING:
                continue
            node = live.get(NodeId(row.node_id))
            places[row.replica_id] = row
            one = RoutableReplica(
                replica_id=ReplicaId(row.replica_id),
                incarnation=row.incarnation,
                host=row.host,
                port=row.port,
                node_state=node.state if node else NodeState.LOST,
                is_silent_past_lease=is_past_lease(node, self.timers.lost_s),
                version=1,
            )
            routable.setdefault(row.deployment_id, []).append(one)
        self.table = {
            deployment_id: tuple(
                (NodeId(places[one.replica_id].node_id), one.replica_id, one.incarnation, one.port)
                for one in chosen(replicas)
            )
            for deployment_id, replicas in routable.items()
        }

    def _commit(self, picture: Picture, live: dict[NodeId, NodeNow], planned: Plan, following: Steps) -> None:
        self._is_busy = False
        database = self.database
        replicas = {row.replica_id: row for row in picture.replicas}
        has_changed = False
        try:
            if not (planned.is_empty and following.is_empty):
                database.fenced(self.epoch)
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
            self.die()
            return
        self.cluster.passes += 1
        self.leases.storage_is(up=True, now=self.world.now)
        for instant in (planned.wake_at, following.wake_at):
            if instant is not None:
                self._due = min(self._due, (instant - EPOCH).total_seconds() - self.wall_offset_s)
        if planned.refusals:
            self._due = min(self._due, self.world.now + 3.0)
        if has_changed or self._is_dirty:
            self.wake()

    def _write(
        self, live: dict[NodeId, NodeNow], planned: Plan, following: Steps, replicas: dict[str, Replica]
    ) -> bool:
        database, epoch, has_changed = self.database, self.epoch, False
        for start in planned.starts:
            promises = {str(device): count for device, count in start.promises.items()}
            has_changed |= database.start(epoch, start.deployment_id, start.generation, start.node_id, promises)
        for stop in planned.stops:
            row = replicas[stop.replica_id]
            if row.desired == Desired.RUN.value:
                wish = first_wish(row, live.get(NodeId(row.node_id)), self.timers.lost_s)
                has_changed |= database.wish(epoch, row.replica_id, row.desired, wish)
        for row in following.stops:
            has_changed |= database.wish(epoch, row.replica_id, row.desired, Desired.STOP)
        for row in following.gone:
            if database.forget(epoch, row.replica_id):
                has_changed = True
                self.cluster.forgotten(row)
        for deployment_id in following.ended:
            has_changed |= self.cluster.ended(deployment_id)
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


def _row(hello: Hello) -> NodeRow:
    return NodeRow(
        node_id=str(hello.node_id),
        name=str(hello.node_id),
        machine_id=hello.machine_id,
        boot_id=hello.boot_id,
        agent_version="0",
        hostname="",
        system="",
        machine="",
        cpu_count=8,
        memory_bytes=0,
        disk_total_bytes=0,
        labels={},
        engines=_FACTS,
        state=NodeState.SUSPECT.value,
        is_cordoned=False,
        session_epoch=1,
        generation=0,
        desired_digest="",
        created_at=EPOCH,
        plane_host="",
        plane_port=0,
        is_approved=True,
        joined_at=None,
    )
