"""The fleet: which nodes there are, which are heard of, what they hold, and how to reach them.

Comes in: sessions from the gRPC edge, desired sets from the reconcile loop. Goes out: `NodeNow` for every node and
wake-ups. Who lives and who is lost is decided in `controller.fleet.leases`; this is its adapter. Live telemetry stays
in memory; rows are written at hello and by the reconcile loop. Nothing waits between reading and changing the live
state, so the event loop is its lock.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from controller.exchange import EngineFact, Observation
from controller.fleet import lease as machine
from controller.fleet import session as protocol
from controller.fleet import store
from controller.fleet.admission import Bounds
from controller.fleet.brake import Brake
from controller.fleet.greeting import Greeting
from controller.fleet.lease import Timers
from controller.fleet.leases import Leases
from controller.fleet.model import (
    Ack,
    ControllerMessage,
    DesiredSet,
    Goodbye,
    Hello,
    NodeMessage,
    NodeNow,
    NodeRow,
    Refuse,
    Welcome,
)
from controller.fleet.reception import Reception, RefusedError
from controller.fleet.significance import significant
from core.clock import Clock
from core.devices import DeviceReading
from core.ids import NodeId
from core.infra import postgres
from core.infra.logs import Log
from core.ports import Wakeups
from core.states import NodeState

OUTBOX_MAX = 1000
"""A node that does not read so many messages is stuck: its session is ended and it dials again."""


class Session:
    """One accepted stream of one node: its protocol state and what is to be sent."""

    def __init__(self, node_id: NodeId, epoch: int, version: int) -> None:
        self.node_id = node_id
        self.epoch = epoch
        self.state = protocol.SessionState(protocol=version)
        self.is_closed = False
        self._queue: deque[ControllerMessage] = deque()
        self._desired: DesiredSet | None = None
        self._event = asyncio.Event()

    def send(self, message: ControllerMessage) -> None:
        """Queue a message; of several desired sets only the newest is sent, a refusal is the last."""
        if self.is_closed:
            return
        if isinstance(message, DesiredSet):
            self._desired = message
        elif isinstance(message, Refuse):
            self.close(message)
        elif len(self._queue) >= OUTBOX_MAX:
            self.close(Refuse(code="node.stale_sequence", message="this node does not read its messages"))
        else:
            self._queue.append(message)
        self._event.set()

    def close(self, refusal: Refuse | None = None) -> None:
        """End the session, telling the node why if there is a reason to tell."""
        if not self.is_closed:
            if refusal is not None:
                self._queue.append(refusal)
            self.is_closed = True
            self._event.set()

    async def next_messages(self) -> tuple[ControllerMessage, ...]:
        """Wait for messages and return all of them; empty when the session has ended and nothing is left."""
        await self._event.wait()
        if not self.is_closed:
            self._event.clear()
        messages = tuple(self._queue)
        self._queue.clear()
        if self._desired is not None and not self.is_closed:
            messages += (self._desired,)
            self._desired = None
        return messages


@dataclass(kw_only=True)
class _Entry:
    """The live half of one node, besides its lease; `rivals` counts other machines that came by its name."""

    row: NodeRow
    session: Session | None = None
    devices: tuple[DeviceReading, ...] = ()
    disk_free_bytes: int = 0
    measured_at: float | None = None
    applied_generation: int = 0
    sent_generation: int = 0
    observation: Observation | None = None
    observed_version: int = 0
    rivals: int = 0


class Fleet:
    """Every node of the cluster, live."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        wakeups: Wakeups,
        clock: Clock,
        chance: Callable[[], float],
        heartbeat_s: float,
        leader_epoch: int,
        bounds: Bounds,
        log: Log,
    ) -> None:
        self._database = database
        self._wakeups = wakeups
        self._clock = clock
        self._leader_epoch = leader_epoch
        self.timers = Timers(heartbeat_s=heartbeat_s)
        self._leases = Leases(self.timers, clock.monotonic())
        self._entries: dict[NodeId, _Entry] = {}
        greeting = Greeting(database, self._unwritten, log)
        self.reception = Reception(greeting.write, clock=clock, chance=chance, bounds=bounds)

    def installed_versions(self, engine: str) -> frozenset[str]:
        """Return every version of `engine` that some node said it has, when it last said what it has."""
        found: set[str] = set()
        for entry in self._approved().values():
            told = entry.observation.engines if entry.observation is not None else ()
            found.update(*(fact.installed_versions for fact in told if fact.engine == engine))
            if not told:
                found.update(*(fact["installed_versions"] for fact in entry.row.engines if fact["engine"] == engine))
        return frozenset(found)

    def engines(self) -> dict[NodeId, tuple[EngineFact, ...]]:
        """Return what each node said of its engines in this reign; a node that has not is left out."""
        return {
            node_id: entry.observation.engines
            for node_id, entry in self._approved().items()
            if entry.observation is not None and entry.observation.engines
        }

    def _approved(self) -> dict[NodeId, _Entry]:
        return {node_id: entry for node_id, entry in self._entries.items() if entry.row.is_approved}

    async def load(self) -> None:
        """Read the nodes of former reigns: none of them counts as ready or lost before it had time to dial again.

        Raises:
            Failure: `storage.unavailable`.
        """
        async with self._database.snapshot() as connection:
            rows = await store.nodes(connection)
            devices: dict[str, list[DeviceReading]] = {}
            for device in await store.devices(connection):
                devices.setdefault(device.node_id, []).append(device.reading())
        for row in rows:
            self._leases.add(NodeId(row.node_id), has_left=row.state == NodeState.OFFLINE.value)
            self._entries[NodeId(row.node_id)] = _Entry(
                row=row,
                devices=tuple(devices.get(row.node_id, ())),
            )

    async def open(self, hello: Hello, *, is_remote: bool = False) -> Session:
        """Begin a session and close the older one of the same node; `is_remote` when it came by its certificate.

        Raises:
            RefusedError: the hello is not accepted.
        """
        refusal = protocol.admission(hello, leader_epoch=self._leader_epoch, living=self.living(hello.node_id))
        if refusal is not None:
            if refusal.code == protocol.CONFLICT:
                self._entries[hello.node_id].rivals += 1
                self._wakeups.wake("node_rival")
            raise RefusedError(refusal)
        row = await self.reception.admitted(hello, is_remote=is_remote, is_known=self._is_known(hello.node_id))
        entry = self._entries.setdefault(hello.node_id, _Entry(row=row))
        for effect in self._happened(hello.node_id, machine.Opened(row.session_epoch)):
            if isinstance(effect, machine.Stale):
                raise RefusedError(
                    Refuse(code="node.stale_sequence", message="a newer session of this node was faster")
                )
            if isinstance(effect, machine.CloseStream) and entry.session is not None:
                entry.session.close(
                    Refuse(code="node.stale_sequence", message="a newer session of this node has begun")
                )
        session = Session(hello.node_id, row.session_epoch, protocol.agreed_protocol(hello))
        entry.row, entry.session, entry.sent_generation = row, session, 0
        facts = hello.inventory
        self._measured(entry, protocol.Telemetry(devices=facts.devices, disk_free_bytes=facts.disk_free_bytes))
        entry.applied_generation = hello.observation.applied_generation
        self._observe(entry, hello.observation, is_forced=True)
        session.send(
            Welcome(
                leader_epoch=self._leader_epoch,
                session_epoch=row.session_epoch,
                heartbeat_ms=int(self.timers.heartbeat_s * 1000),
                lease_ms=int(self.timers.lost_s * 1000),
                fence_ms=round(self.timers.fence_s * 1000),
                redial_ms=round(self.timers.grace_s(len(self._entries)) * 1000),
                protocol=session.state.protocol,
                telemetry_ms=int(self.timers.heartbeat_s * 1000),
            )
        )
        self._wakeups.wake("node_hello")
        return session

    def check_room(self, node_id: NodeId) -> None:
        """See whether a hello of this node would be taken up now, before anything that costs more is done for it.

        Raises:
            RefusedError: `node.controller_busy`.
        """
        self.reception.check(node_id, is_known=self._is_known(node_id))

    def _is_known(self, node_id: NodeId) -> bool:
        """Return whether a node was here before and may work."""
        entry = self._entries.get(node_id)
        return entry is not None and entry.row.is_approved and entry.row.boot_id != ""

    async def take_hellos(self) -> None:
        """Write the hellos that wait, for ever."""
        await self.reception.run()

    def _unwritten(self, node_id: NodeId) -> None:
        if node_id in self._entries:
            self._happened(node_id, machine.Knocked())

    def living(self, node_id: NodeId) -> protocol.Living | None:
        """Return the machine of the session that a node has now, if it still lives."""
        entry = self._entries.get(node_id)
        if entry is None or entry.session is None or entry.session.is_closed:
            return None
        state = self._leases.state(node_id)
        if state not in (NodeState.READY, NodeState.SUSPECT):
            return None
        return protocol.Living(
            machine_id=entry.row.machine_id, boot_id=entry.row.boot_id, is_heard=state is NodeState.READY
        )

    def receive(self, session: Session, message: NodeMessage) -> None:
        """Carry out what one message of a session asks for; messages of a closed or older session are dropped."""
        entry = self._entries.get(session.node_id)
        if entry is None or session.is_closed:
            return
        has_left = isinstance(message, Goodbye)
        said = machine.Left(session.epoch) if has_left else machine.Heard(session.epoch)
        if machine.Stale() in self._happened(session.node_id, said):
            return
        session.state, effects = protocol.step(session.state, message)
        for effect in effects:
            if isinstance(effect, Ack | Refuse):
                session.send(effect)
            elif isinstance(effect, protocol.Telemetry):
                self._measured(entry, effect)
            elif isinstance(effect, protocol.Applied):
                entry.applied_generation = max(entry.applied_generation, effect.generation)
            elif isinstance(effect, protocol.Observe):
                self._observe(entry, effect.observation)

    def measure(self, node_id: NodeId, session_epoch: int, readings: protocol.Telemetry) -> bool:
        """Keep what a node measures; False when the session that it belongs to has ended.

        No sign of life: that are heartbeats and reports alone.
        """
        session, entry = self.session_of(node_id), self._entries.get(node_id)
        if entry is None or session is None or session.epoch != session_epoch:
            return False
        self._measured(entry, readings)
        return True

    def _measured(self, entry: _Entry, readings: protocol.Telemetry) -> None:
        entry.devices, entry.disk_free_bytes = readings.devices, readings.disk_free_bytes
        entry.measured_at = self._clock.monotonic()

    def closed(self, session: Session) -> None:
        """Note that a stream has ended; it says nothing about the node, whose lease runs on."""
        session.close()
        entry = self._entries.get(session.node_id)
        if entry is None:
            return
        self._happened(session.node_id, machine.Ended(session.epoch))
        if entry.session is session:
            entry.session = None
            self._wakeups.wake("node_stream_ended")

    def forget(self, node_id: NodeId, created_at: datetime) -> None:
        """End a node's session and know it no more, unless its row is a newer one than that of `created_at`."""
        entry = self._entries.get(node_id)
        if entry is None or entry.row.created_at != created_at:
            return
        if entry.session is not None:
            message = f"node {entry.row.name} was forgotten by an operator"
            hint = "join it again with `slice node join`"
            entry.session.close(Refuse(code="node.not_joined", message=message, hint=hint, is_fatal=True))
        del self._entries[node_id]
        self._leases.forget(node_id)

    def close_all(self) -> None:
        """End every session, as this controller ends."""
        for entry in self._entries.values():
            if entry.session is not None:
                entry.session.close(Refuse(code="controller.not_ready", message="the controller is ending"))

    def _observe(self, entry: _Entry, observation: Observation, *, is_forced: bool = False) -> None:
        before = entry.observation
        entry.observation = observation
        entry.applied_generation = max(entry.applied_generation, observation.applied_generation)
        if is_forced or before is None or significant(before) != significant(observation):
            entry.observed_version += 1
            self._wakeups.wake("observed")

    def tick(self) -> None:
        """Look at every lease; wakes the reconcile loop when a node's state changed. Called every `Timers.tick_s`."""
        before = self._leases.brake
        for _, change in self._leases.look(self._clock.monotonic()):
            self._wakeups.wake(f"node_{change.after.value}")
        if self._leases.brake is not before:
            self._wakeups.wake("brake")

    def _happened(self, node_id: NodeId, event: machine.Happened) -> tuple[machine.Effect, ...]:
        effects = self._leases.happened(node_id, event, self._clock.monotonic())
        for effect in effects:
            if isinstance(effect, machine.Changed):
                self._wakeups.wake(f"node_{effect.after.value}")
        return effects

    @property
    def brake(self) -> Brake:
        """Whether so many nodes went silent at once that nothing lost is replaced."""
        return self._leases.brake

    def release_brake(self) -> None:
        """Let what is lost now be replaced, as an operator says."""
        self._leases.release_brake()
        self._wakeups.wake("brake")

    def storage_is(self, *, up: bool) -> None:
        """Note whether the database answers: without it no node becomes lost."""
        self._leases.storage_is(up=up, now=self._clock.monotonic())

    def nodes(self) -> dict[NodeId, NodeNow]:
        """Return every node as it is known now."""
        self.tick()
        held, now = self._leases.brake.held, self._clock.monotonic()
        return {node_id: self._now(node_id, entry, now, held) for node_id, entry in self._entries.items()}

    def _now(self, node_id: NodeId, entry: _Entry, now: float, held: frozenset[NodeId]) -> NodeNow:
        session, leases = entry.session, self._leases
        return NodeNow(
            node_id=node_id,
            name=entry.row.name,
            state=leases.state(node_id),
            silent_s=leases.silent_s(node_id, now),
            is_heard=leases.lease(node_id).heard_at is not None,
            is_connected=session is not None and not session.is_closed,
            devices=entry.devices,
            disk_free_bytes=entry.disk_free_bytes,
            applied_generation=entry.applied_generation,
            sent_generation=entry.sent_generation,
            session_epoch=entry.row.session_epoch,
            observation=entry.observation,
            observed_version=entry.observed_version,
            plane_host=entry.row.plane_host,
            plane_port=entry.row.plane_port,
            is_held=node_id in held,
            is_flapping=leases.is_flapping(node_id, now),
            returned_s=leases.returned_s(node_id, now),
            rivals=entry.rivals,
            measured_s=None if entry.measured_at is None else now - entry.measured_at,
            protocol=session.state.protocol if session is not None else None,
        )

    def send_desired(self, node_id: NodeId, session_epoch: int, desired: DesiredSet) -> None:
        """Send a node its whole desired set, if the session it was made for is still the living one."""
        entry = self._entries.get(node_id)
        if entry is not None and entry.session is not None and entry.session.epoch == session_epoch:
            entry.sent_generation = desired.generation
            entry.session.send(desired)

    def meet(self, row: NodeRow) -> None:
        """Take in a node that has joined and has said no hello, or one that was approved: what it holds counts now."""
        node_id = NodeId(row.node_id)
        if node_id not in self._entries:
            self._entries[node_id] = _Entry(row=row)
            self._leases.add(node_id, has_left=True)
        entry = self._entries[node_id]
        # A hello may have come between the reading of the row and now.
        entry.row = replace(row, session_epoch=max(row.session_epoch, entry.row.session_epoch))
        entry.observed_version += 1

    def is_local(self, node_id: NodeId) -> bool:
        """Return whether a node that has said hello is the one of the controller's own machine."""
        entry = self._entries.get(node_id)
        return entry is not None and entry.row.joined_at is None

    def session_of(self, node_id: NodeId) -> Session | None:
        """Return the living session of a node."""
        entry = self._entries.get(node_id)
        return None if entry is None or entry.session is None or entry.session.is_closed else entry.session
