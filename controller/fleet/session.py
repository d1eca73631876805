"""The node's session as a pure machine: (state, message) -> (state, effects); and who may begin one.

Comes in: checked messages. Goes out: effects that `controller.fleet.service` carries out. No gRPC, no clock.
"""

from dataclasses import dataclass, replace

from controller.exchange import Observation
from controller.fleet.model import Ack, Goodbye, Heartbeat, Hello, NodeMessage, Refuse
from core.devices import DeviceReading

PROTOCOL = 1
"""The one version of slice.node.v1 that this release speaks."""


@dataclass(frozen=True, kw_only=True)
class SessionState:
    """What a session remembers: the last heartbeat's number, and whether the node has said goodbye."""

    last_sequence: int = 0
    has_left: bool = False


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """Effect: keep these readings."""

    devices: tuple[DeviceReading, ...]
    disk_free_bytes: int
    applied_generation: int


@dataclass(frozen=True, kw_only=True)
class Observe:
    """Effect: this is all the node holds."""

    observation: Observation


@dataclass(frozen=True, kw_only=True)
class Leave:
    """Effect: the node has left on purpose."""

    reason: str


Effect = Ack | Telemetry | Observe | Leave | Refuse


def step(state: SessionState, message: NodeMessage) -> tuple[SessionState, tuple[Effect, ...]]:
    """Return the session's next state and what is to be done.

    A heartbeat whose number does not grow comes from a stream that was replaced: the session is refused.
    """
    if isinstance(message, Heartbeat):
        if message.sequence <= state.last_sequence:
            refusal = Refuse(
                code="node.stale_sequence",
                message=f"heartbeat {message.sequence} came after {state.last_sequence}",
                hint="dial again",
            )
            return state, (refusal,)
        telemetry = Telemetry(
            devices=message.devices,
            disk_free_bytes=message.disk_free_bytes,
            applied_generation=message.applied_generation,
        )
        return replace(state, last_sequence=message.sequence), (telemetry, Ack(sequence=message.sequence))
    if isinstance(message, Goodbye):
        return replace(state, has_left=True), (Leave(reason=message.reason),)
    return state, (Observe(observation=message),)


def admission(hello: Hello, *, leader_epoch: int, living_machine_id: str | None) -> Refuse | None:
    """Return why `hello` may not begin a session, or None when it may.

    `living_machine_id` is the machine of the session that this node id has now and that still lives, if any.
    """
    if hello.protocol_max < PROTOCOL or hello.protocol_min > PROTOCOL:
        return Refuse(
            code="node.protocol_too_old",
            message=f"this controller speaks protocol {PROTOCOL}, the node agent {hello.protocol_min} "
            f"to {hello.protocol_max}",
            hint="install the same release on both",
            is_fatal=True,
        )
    if living_machine_id is not None and living_machine_id != hello.machine_id:
        return Refuse(
            code="node.identity_conflict",
            message=f"another machine is connected as node {hello.node_id}",
            hint="a copied data directory? delete its node identity and start the node agent again",
            is_fatal=True,
        )
    if hello.max_leader_epoch_seen > leader_epoch:
        return Refuse(
            code="controller.not_ready",
            message=f"this controller's reign {leader_epoch} is older than {hello.max_leader_epoch_seen}, which the "
            "node has seen: a former leader, or a database restored from a backup",
            retry_after_ms=5000,
        )
    return None
