"""The node's stream to the controller: hello, heartbeats, the desired set down, the observed set up.

Comes in: `ControllerMessage`s. Goes out: `NodeMessage`s; logs on calls of their own (`node_agent.log_sending`), and
readings on a connection of their own (`node_agent.telemetry`): a heartbeat waits for no device.
Started once by `node_agent.agent` and lives as long. A broken or silent stream is dialled anew with full jitter, and
where nobody listens as soon as somebody does (`node_agent.redialling`); that the controller is away never touches an
engine.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from core import protocols
from core.clock import Clock
from core.errors import Failure
from core.infra.logs import Log
from core.protocols import SPOKEN, Span
from node_agent import fence, fences, identity, shim_client
from node_agent.dialing import Way
from node_agent.fence import Fence
from node_agent.inventory import Inventory, reading_message
from node_agent.log_sending import LogSender
from node_agent.redialling import Redialling
from node_agent.standing import StandingFile, State
from node_agent.supervisor import Supervisor
from node_agent.telemetry import Telemetry
from protos.slice.node.v1 import node_pb2, node_pb2_grpc

_HELLO_DEADLINE_S = 10.0
_OBSERVED_EVERY_S = 5.0
_COALESCE_S = 0.05  # changes that come together go out together
_HEARTBEAT_JITTER = 0.1
_BACK_OFF_BASE_S = 0.2
_BACK_OFF_CAP_S = 5.0
_FATAL_PAUSE_S = 30.0
_TOLD_JITTER = 0.25
_FAULT_PAUSE_S = 5.0
_GOODBYE_DEADLINE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """Who this node is; the same at every hello of one run."""

    node_id: str
    node_name: str
    run_id: str
    agent_version: str
    labels: dict[str, str]
    plane_host: str = ""
    plane_port: int = 0
    protocols: Span = SPOKEN


class Rejected(Exception):
    """The controller does not want this node now; `pause_s` is how many seconds to stay away."""

    def __init__(self, code: str, message: str, pause_s: float, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.pause_s = pause_s
        self.hint = hint


class _Lapsed(Exception):
    """The stream ended, or the controller fell silent past the lease."""


def back_off_s(attempt: int, chance: float) -> float:
    """Return the wait before reconnect `attempt` (from 0): anything from 0 to min(5, 0.2 x 2^n) s.

    Source: "full jitter" in AWS Architecture Blog, Exponential Backoff And Jitter.
    """
    return chance * min(_BACK_OFF_CAP_S, _BACK_OFF_BASE_S * 2.0 ** min(attempt, 16))


def pause_s(attempt: int, chance: float, told_s: float) -> float:
    """Return the wait before reconnect `attempt`: what the controller told and up to a quarter more, else the back-off.

    A controller that answers knows best when it can take this node; those it told the same come apart by their chances.
    """
    return told_s * (1.0 + _TOLD_JITTER * chance) if told_s > 0 else back_off_s(attempt, chance)


class Session:
    """Keeps one stream open for as long as it can."""

    def __init__(
        self,
        *,
        facts: NodeFacts,
        way: Way,
        supervisor: Supervisor,
        inventory: Inventory,
        telemetry: Telemetry,
        fence: Fence,
        revoke: Callable[[Iterable[str]], None],
        standing: StandingFile,
        clock: Clock,
        chance: Callable[[], float],
        log: Log,
    ) -> None:
        self._facts = facts
        self._way = way
        self._supervisor = supervisor
        self._inventory = inventory
        self._telemetry = telemetry
        self._fence = fence
        self._revoke = revoke
        self._standing = standing
        self._clock = clock
        self._chance = chance
        self._log = log
        self._last_reason = ""
        self._leaving = asyncio.Event()
        self._has_left = asyncio.Event()
        self._redialling = Redialling(
            is_refused=way.is_refused,
            extended=fence.extended,
            pause=self._pause,
            is_leaving=self._leaving.is_set,
            now=clock.monotonic,
            chance=chance,
        )

    async def leave(self) -> None:
        """Say goodbye and end the stream; returns when it is out, or after 2 s."""
        self._leaving.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._has_left.wait(), _GOODBYE_DEADLINE_S)

    async def run(self) -> None:
        """Connect, and connect again, until `leave`; then wait to be cancelled."""
        attempt = 0
        while not self._leaving.is_set():
            connection = _Connection(self._parts())
            told_s, was_answered = 0.0, False
            try:
                await self._hold(connection)
            except Rejected as rejected:
                told_s, was_answered = rejected.pause_s, True
                self._log.warning("session_rejected", code=rejected.code, message=rejected.message)
                await self._standing.tell(
                    State.REFUSED, code=rejected.code, message=rejected.message, hint=rejected.hint
                )
            except Failure as failure:
                told_s = _FAULT_PAUSE_S
                await self._note_fault(failure)
            except (_Lapsed, grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as error:
                await self._note_end(_words(error), was_open=connection.is_open)
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the node agent, nor go on hot
                told_s = _FAULT_PAUSE_S
                self._log.error("session_failed", error=repr(error), exc=error)
            attempt = 0 if connection.is_open else attempt + 1
            if not self._leaving.is_set():
                wait_s = pause_s(attempt, self._chance(), told_s)
                if was_answered:  # it is there, and knows best when it can take this node
                    await self._pause(wait_s)
                elif await self._redialling.rest(wait_s):
                    attempt = 0
        self._has_left.set()
        # An eternal task: its owner cancels it. Its end by itself would be a failure of the process.
        await asyncio.Event().wait()

    async def _pause(self, seconds: float) -> None:
        """Wait until we are to leave, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), seconds)

    async def _note_end(self, reason: str, *, was_open: bool) -> None:
        # TLS libraries do not tell a peer why they hang up, so after a failed dial we look at our own certificate. The
        # dial comes first: it is the controller's clock that counts, ours may be wrong.
        fault = None if was_open else await self._way.fault(self._clock.now())
        if fault is not None:
            await self._note_fault(fault)
            return
        # A controller that is away for a week is one line, not a hundred thousand.
        if was_open or reason != self._last_reason:
            self._log.info("session_ended", reason=reason, was_open=was_open)
        self._last_reason = reason
        await self._standing.tell(State.DIALLING, code="controller.unreachable", message=reason)

    async def _note_fault(self, fault: Failure) -> None:
        if fault.code != self._last_reason:
            self._log.error("session_impossible", code=fault.code, message=fault.message, hint=fault.hint)
        self._last_reason = fault.code
        await self._standing.tell(State.REFUSED, code=fault.code, message=fault.message, hint=fault.hint)

    def _parts(self) -> "_Parts":
        return _Parts(
            facts=self._facts,
            way=self._way,
            supervisor=self._supervisor,
            inventory=self._inventory,
            telemetry=self._telemetry,
            fence=self._fence,
            revoke=self._revoke,
            standing=self._standing,
            redialling=self._redialling,
            chance=self._chance,
            log=self._log,
            leaving=self._leaving,
        )

    async def _hold(self, connection: "_Connection") -> None:
        async with await self._way.channel() as channel:
            await connection.hold(node_pb2_grpc.NodeControlStub(channel))  # type: ignore[no-untyped-call]  # generated


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name.lower()}: {error.details()}"
    return str(error) or type(error).__name__


@dataclass(frozen=True, kw_only=True)
class _Parts:
    facts: NodeFacts
    way: Way
    supervisor: Supervisor
    inventory: Inventory
    telemetry: Telemetry
    fence: Fence
    revoke: Callable[[Iterable[str]], None]
    standing: StandingFile
    redialling: Redialling
    chance: Callable[[], float]
    log: Log
    leaving: asyncio.Event


class _Connection:
    """One stream from hello to its end; heartbeats, reports and what is heard each have a task."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self._ack: node_pb2.HelloAck | None = None
        self._heard_at = 0.0
        self._writing = asyncio.Lock()  # gRPC takes one write at a time
        self._has_said_all = False
        self.is_open = False

    async def hold(self, stub: Any) -> None:
        """Run the stream until it ends or lapses.

        Raises:
            Rejected: the controller refuses this node. _Lapsed, RpcError: the stream broke.
        """
        parts = self._parts
        call = stub.Session(metadata=parts.way.metadata)
        logs = LogSender(stub=stub, metadata=parts.way.metadata, path_of=parts.supervisor.log_path, log=parts.log)
        try:
            ack = await self._greet(call)
            async with logs:
                await _first_of(
                    self._read(call, ack, logs), self._beat(call, ack), self._report(call), parts.telemetry.keep(ack)
                )
        finally:
            call.cancel()

    async def _greet(self, call: Any) -> node_pb2.HelloAck:
        async with asyncio.timeout(_HELLO_DEADLINE_S):
            hello = await self._hello()
            self._parts.fence.begin()
            await call.write(node_pb2.NodeMessage(hello=hello))
            while True:
                message = await self._next(call)
                if message.WhichOneof("body") == "hello_ack":
                    break
        ack: node_pb2.HelloAck = message.hello_ack
        ack.protocol = protocols.accepted(ack.protocol, self._parts.facts.protocols)
        seen = self._parts.supervisor.leader_epoch
        if not fences.obeys_leader(seen, ack.leader_epoch):
            raise Rejected(
                code="node.stale_sequence",
                message=f"the controller reigns in epoch {ack.leader_epoch}, this node has seen {seen}",
                pause_s=_BACK_OFF_CAP_S,
            )
        await self._parts.supervisor.see_epoch(ack.leader_epoch)
        self._parts.fence.open(ack.fence_ms / 1000.0 or fence.fence_s(ack.lease_ms / 1000.0))
        self._parts.redialling.opened(ack.redial_ms / 1000.0)
        self.is_open = True
        self._heard_at = asyncio.get_running_loop().time()
        self._parts.log.info(
            "session_open", leader_epoch=ack.leader_epoch, session_epoch=ack.session_epoch, protocol=ack.protocol
        )
        await self._parts.standing.tell(State.OPEN)
        return ack

    async def _hello(self) -> node_pb2.Hello:
        facts, supervisor = self._parts.facts, self._parts.supervisor
        inventory = await self._parts.inventory.message()
        self._parts.telemetry.begin(inventory)
        return node_pb2.Hello(
            protocol_min=facts.protocols.oldest,
            protocol_max=facts.protocols.newest,
            node_id=facts.node_id,
            node_name=facts.node_name,
            machine_id=await asyncio.to_thread(identity.machine_id),
            boot_id=await asyncio.to_thread(shim_client.boot_id),
            agent_run_id=facts.run_id,
            agent_version=facts.agent_version,
            max_leader_epoch_seen=supervisor.leader_epoch,
            inventory=inventory,
            observed=supervisor.observed(),
            labels=facts.labels,
            plane_host=facts.plane_host,
            plane_port=facts.plane_port,
        )

    async def _next(self, call: Any) -> node_pb2.ControllerMessage:
        message = await call.read()
        if message is grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
            raise _Lapsed("the controller ended the stream")
        if message.WhichOneof("body") == "reject":
            reject = message.reject
            least_s = _FATAL_PAUSE_S if reject.is_fatal else 0.0
            pause_s = max(least_s, reject.retry_after_ms / 1000.0)
            raise Rejected(code=reject.code, message=reject.message, pause_s=pause_s, hint=reject.hint)
        return message  # type: ignore[no-any-return]

    async def _read(self, call: Any, ack: node_pb2.HelloAck, logs: LogSender) -> None:
        lease_s = max(ack.lease_ms / 1000.0, 1.0)
        while True:
            try:
                # Only acks count: a controller that talks but does not hear us would let our lease run out.
                async with asyncio.timeout_at(self._heard_at + lease_s):
                    message = await self._next(call)
            except TimeoutError:
                raise _Lapsed(f"no heartbeat was acknowledged for {lease_s:g} s") from None
            match message.WhichOneof("body"):
                case "heartbeat_ack":
                    self._parts.fence.acknowledged(message.heartbeat_ack.sequence)
                    self._heard_at = asyncio.get_running_loop().time()
                case "desired":
                    was_applied = await self._parts.supervisor.apply(message.desired)
                    generation = message.desired.generation
                    self._parts.log.info("desired_received", generation=generation, was_applied=was_applied)
                case "revoked":
                    self._parts.revoke(message.revoked.serials)
                case "log_request":
                    logs.take(message.log_request)
                case _:
                    pass

    async def _beat(self, call: Any, ack: node_pb2.HelloAck) -> None:
        """Send heartbeats; nothing but the line itself, and a report that is being written to it, delays one."""
        interval_s = max(ack.heartbeat_ms / 1000.0, 0.05)
        sequence = 0
        while True:
            sequence += 1
            self._parts.fence.sent(sequence)
            await self._say(call, heartbeat=self._heartbeat(sequence, ack.protocol))
            await asyncio.sleep(interval_s * (1.0 + _HEARTBEAT_JITTER * (2.0 * self._parts.chance() - 1.0)))

    async def _report(self, call: Any) -> None:
        """Send the observed set when it changes and every few seconds; say goodbye when we are to leave."""
        loop, parts = asyncio.get_running_loop(), self._parts
        observed_at = loop.time() + _OBSERVED_EVERY_S
        while not parts.leaving.is_set():
            if parts.supervisor.changed.is_set() or loop.time() >= observed_at:
                parts.supervisor.changed.clear()
                observed = parts.supervisor.observed()
                observed.engines.extend(await parts.inventory.engines())
                await self._say(call, observed=observed)
                observed_at = loop.time() + _OBSERVED_EVERY_S
            await self._pause(observed_at - loop.time())
        await self._say(call, goodbye=node_pb2.Goodbye(reason="the node agent was told to end"))
        async with self._writing:
            self._has_said_all = True
            await call.done_writing()
        with contextlib.suppress(TimeoutError, _Lapsed, grpc.RpcError):
            async with asyncio.timeout(_GOODBYE_DEADLINE_S / 2):
                await call.code()

    async def _say(self, call: Any, **body: Any) -> None:
        async with self._writing:
            if not self._has_said_all:
                await call.write(node_pb2.NodeMessage(**body))

    async def _pause(self, seconds: float) -> None:
        """Wait until something changed, we are to leave, or `seconds` have passed."""
        parts = self._parts
        waits = [asyncio.ensure_future(parts.supervisor.changed.wait()), asyncio.ensure_future(parts.leaving.wait())]
        try:
            await asyncio.wait(waits, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
            if parts.supervisor.changed.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(waits[1]), _COALESCE_S)
        finally:
            for wait in waits:
                wait.cancel()

    def _heartbeat(self, sequence: int, version: int) -> node_pb2.Heartbeat:
        beat = node_pb2.Heartbeat(sequence=sequence, applied_generation=self._parts.supervisor.applied_generation)
        if version < protocols.TELEMETRY_APART:
            measured = self._parts.telemetry.latest
            beat.devices.extend(reading_message(reading) for reading in measured.devices)
            beat.disk_free_bytes = measured.disk_free_bytes
        return beat


async def _first_of(*works: Any) -> None:
    """Run `works` until one ends; cancel the others and raise what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
