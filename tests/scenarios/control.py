"""One controller in the simulation: its reign, its leases and its streams; `tests.scenarios.loop` decides.

What is here stands for `controller.leadership` and `controller.fleet.service`, which are bound to asyncio and SQL: the
leases and the session's machine are the real ones.
"""

from typing import TYPE_CHECKING

from controller.exchange import Observation
from controller.fleet import lease as machine
from controller.fleet import session as protocol
from controller.fleet.lease import Timers
from controller.fleet.leases import Leases
from controller.fleet.model import Ack, DesiredSet, Hello, NodeMessage, NodeRow, Refuse, Welcome
from controller.fleet.significance import significant
from core.errors import Failure
from core.ids import NodeId
from core.states import NodeState
from tests.scenarios.database import LeadershipLost
from tests.scenarios.fleet import Entry, Peer
from tests.scenarios.loop import IDLE_S, RETRY_S, Loop
from tests.scenarios.world import EPOCH, Process

if TYPE_CHECKING:
    from tests.scenarios.cluster import Cluster
    from tests.scenarios.session import Session

RENEW_S = 2.0
_FACTS = ({"engine": "fake", "is_usable": True, "device_kinds": ["cpu", "nvidia"], "reason": ""},)


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
        self.loop = Loop(self)

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
        self.loop.due = self.world.now + IDLE_S
        self.loop.wake()

    def die(self) -> None:
        """End; the streams break, for those who are told."""
        self.is_alive = self.is_serving = False
        for stream, peer in self.peers.items():
            self.cluster.tell_broken(self.name, peer.session, stream)
        self.loop.forget()
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
        if self.leases.look(self.world.now) or self.leases.brake is not before or self.world.now >= self.loop.due:
            self.loop.wake()
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
            self.say(session, stream, refusal)
            return
        for effect in self.leases.happened(node_id, machine.Opened(row.session_epoch), self.world.now):
            if isinstance(effect, machine.Stale):
                self.say(session, stream, Refuse(code="node.stale_sequence", message="a newer one was faster"))
                return
            if isinstance(effect, machine.CloseStream) and entry is not None and entry.stream in self.peers:
                older = self.peers[entry.stream]
                self.say(older.session, entry.stream, Refuse(code="node.stale_sequence", message="a newer one"))
        entry = self.entries.setdefault(node_id, Entry())
        way = (self.name, str(node_id))
        self.peers[stream] = Peer(session=session, node_id=node_id, epoch=row.session_epoch, entry=entry, way=way)
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
        self.say(session, stream, welcome)
        self.loop.wake()

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
        world, entry, said = self.world, peer.entry, peer.heard
        if not world.fences.session_epoch:
            said = machine.Heard(self.leases.lease(peer.node_id).stream)
        effects = self.leases.happened(peer.node_id, said, world.now)
        if effects:
            if machine.Stale() in effects:
                return
            self.loop.wake()
        if serial < entry.serial:
            self.world.violated("what is known never goes back", f"{peer.node_id} said {serial} after {entry.serial}")
        entry.serial = serial
        peer.state, answers = protocol.step(peer.state, message)
        for answer in answers:
            if isinstance(answer, protocol.Telemetry):
                entry.devices = answer.devices
            elif isinstance(answer, protocol.Applied):
                if answer.generation > entry.applied:
                    entry.applied = answer.generation
            elif isinstance(answer, (Ack, Refuse)):
                session = peer.session
                self.cluster.network.send(peer.way, stream, session.agent, session.take, stream, answer)
            elif isinstance(answer, protocol.Observe):
                self._observed(entry, answer.observation)

    def _observed(self, entry: Entry, observed: Observation) -> None:
        if observed is entry.observation:  # said again, word for word
            return
        entry.observation = observed
        entry.applied = max(entry.applied, observed.applied_generation)
        matter = significant(observed)
        if matter != entry.matter:
            entry.matter = matter
            entry.version += 1
            self.loop.wake()

    def ended(self, stream: int) -> None:
        """Note the end of a stream."""
        peer = self.peers.pop(stream, None)
        if peer is not None:
            self.leases.happened(peer.node_id, machine.Ended(peer.epoch), self.world.now)
            if self.entries[peer.node_id].stream == stream:
                self.entries[peer.node_id].stream = 0

    def say(self, session: "Session", stream: int, message: object) -> None:
        """Send a message to a node by one of its streams."""
        way = (self.name, str(session.node_id))
        is_repeatable = isinstance(message, DesiredSet)
        self.cluster.network.send(
            way, stream, session.agent, session.take, stream, message, is_repeatable=is_repeatable
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
