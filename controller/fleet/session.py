"""The node's session as a pure machine: (state, message) -> (state, effects); and who may begin one.

Comes in: checked messages. Goes out: effects that `controller.fleet.service` carries out. No gRPC, no clock.
"""

from dataclasses import dataclass
from typing import NamedTuple

from controller.exchange import Observation
from controller.fleet.model import Ack, Goodbye, Heartbeat, Hello, NodeMessage, NodeRow, Refuse
from core import protocols
from core.devices import DeviceReading
from core.errors import Failure
from core.protocols import SPOKEN, Span

CONFLICT = "node.identity_conflict"


class SessionState(NamedTuple):
    """What a session remembers: its protocol, the last heartbeat's number, whether the node has said goodbye.

    A tuple, as `Telemetry` is, because a controller of a thousand nodes makes five hundred of them a second.
    """

    protocol: int = SPOKEN.newest
    last_sequence: int = 0
    has_left: bool = False


class Telemetry(NamedTuple):
    """Effect: keep these readings."""

    devices: tuple[DeviceReading, ...]
    disk_free_bytes: int


class Applied(NamedTuple):
    """Effect: the node has applied this generation."""

    generation: int


@dataclass(frozen=True, kw_only=True)
class Observe:
    """Effect: this is all the node holds."""

    observation: Observation


@dataclass(frozen=True, kw_only=True)
class Leave:
    """Effect: the node has left on purpose."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Living:
    """The session that a node id has now: the machine at its other end; `is_heard` while its lease is ready."""

    machine_id: str
    boot_id: str
    is_heard: bool


Effect = Ack | Telemetry | Applied | Observe | Leave | Refuse


def step(state: SessionState, message: NodeMessage) -> tuple[SessionState, tuple[Effect, ...]]:
    """Return the session's next state and what is to be done.

    A heartbeat whose number does not grow comes from a stream that was replaced: the session is refused. Readings in
    it count where they have no channel of their own: in protocol 1.
    """
    if isinstance(message, Heartbeat):
        if message.sequence <= state.last_sequence:
            refusal = Refuse(
                code="node.stale_sequence",
                message=f"heartbeat {message.sequence} came after {state.last_sequence}",
                hint="dial again",
            )
            return state, (refusal,)
        # By position, which costs a tuple half as much.
        heard = SessionState(state.protocol, message.sequence, state.has_left)
        effects: tuple[Effect, ...] = Applied(message.applied_generation), Ack(message.sequence)
        if state.protocol < protocols.TELEMETRY_APART:
            effects = Telemetry(message.devices, message.disk_free_bytes), *effects
        return heard, effects
    if isinstance(message, Goodbye):
        return state._replace(has_left=True), (Leave(reason=message.reason),)
    return state, (Observe(observation=message),)


def protocol_fault(protocol_min: int, protocol_max: int) -> Failure | None:
    """Return why a node agent that speaks these protocols cannot be talked to, or None when it can."""
    return protocols.fault(controller=SPOKEN, node=Span(oldest=protocol_min, newest=protocol_max))


def agreed_protocol(hello: Hello) -> int:
    """Return the version of the session that an admitted `hello` begins."""
    version = protocols.agreed(SPOKEN, Span(oldest=hello.protocol_min, newest=hello.protocol_max))
    assert version is not None, "admitted before"
    return version


def admission(hello: Hello, *, leader_epoch: int, living: Living | None) -> Refuse | None:
    """Return why `hello` may not begin a session, or None when it may.

    `living` is the session that this node id has now and that still lives, if any. 1. A release too far away.
    2. Another machine by the same identity: refused for good. 3. The same machine after another boot, while the first
    is heard: a cloned virtual machine, or one that came back faster than its silence was noticed; it is told to ask
    again when the first, if it is gone, is no longer heard. 4. A newer leader has been seen.
    """
    fault = protocol_fault(hello.protocol_min, hello.protocol_max)
    if fault is not None:
        return Refuse(code=fault.code, message=fault.message, hint=fault.hint, is_fatal=True)
    if living is not None and living.machine_id != hello.machine_id:
        return Refuse(
            code=CONFLICT,
            message=f"another machine is connected as node {hello.node_id}",
            hint="a copied data directory? delete its node identity and start the node agent again",
            is_fatal=True,
        )
    if living is not None and living.is_heard and living.boot_id != hello.boot_id:
        return Refuse(
            code=CONFLICT,
            message=f"node {hello.node_id} is connected and heard of, from another boot of this machine",
            hint="a cloned virtual machine? give it a machine id and a node identity of its own",
            retry_after_ms=1000,
        )
    if hello.max_leader_epoch_seen > leader_epoch:
        return Refuse(
            code="controller.not_ready",
            message=f"this controller's reign {leader_epoch} is older than {hello.max_leader_epoch_seen}, which the "
            "node has seen: a former leader, or a database restored from a backup",
            retry_after_ms=5000,
        )
    return None


def membership(hello: Hello, known: NodeRow | None, *, is_remote: bool) -> Refuse | None:
    """Return why `hello` may not come the way it came, or None when it may; `known` is its node's row, if it has one.

    1. By a certificate: only who has joined. A node that was forgotten, or a database from before it joined, has no
       row; one is never made here, since it would be an approved one.
    2. By the unix socket: only who has not, which is the node agent of the controller's own machine.
    """
    if is_remote and (known is None or known.joined_at is None):
        return Refuse(
            code="node.not_joined",
            message=f"no node {hello.node_id} has joined this cluster",
            hint="make a line with `slice node token create` on the controller's machine and join with it",
            is_fatal=True,
        )
    if not is_remote and known is not None and known.joined_at is not None:
        return Refuse(
            code="node.identity_conflict",
            message=f"node {hello.node_id} has joined from another machine",
            hint="a copied data directory? delete its node identity and start the node agent again",
            is_fatal=True,
        )
    return None
