"""The fleet's values: nodes as rows and as they are now, and the messages of the session protocol.

The gRPC edge makes the inbound ones from checked protobuf (`controller.api.node_wire`) and renders the outbound ones
(`controller.api.node_orders`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from adapters.contract import Runtime
from controller.exchange import EngineFact, Observation
from core.devices import DeviceKind, DeviceReading
from core.ids import DeviceId, NodeId, PullId, ReplicaId, Sha256
from core.states import Desired, NodeState


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a machine is, as its node agent says at hello; sizes in bytes."""

    hostname: str
    system: str
    machine: str
    cpu_count: int
    memory_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int
    devices: tuple[DeviceReading, ...]
    engines: tuple[EngineFact, ...]


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The first message of a session."""

    protocol_min: int
    protocol_max: int
    node_id: NodeId
    node_name: str
    machine_id: str
    boot_id: str
    agent_run_id: str
    agent_version: str
    max_leader_epoch_seen: int
    inventory: Inventory
    observation: Observation
    labels: Mapping[str, str] = field(default_factory=dict)
    plane_host: str = ""
    plane_port: int = 0


class Heartbeat(NamedTuple):
    """A node is alive; `sequence` grows by one within a session. From protocol 2 on it carries no readings.

    A tuple, as `Ack` is: a thousand nodes send five hundred of them a second.
    """

    sequence: int
    applied_generation: int
    devices: tuple[DeviceReading, ...]
    disk_free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Goodbye:
    """A node agent ends on purpose; its engines may serve on."""

    reason: str


NodeMessage = Heartbeat | Observation | Goodbye


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """A session was accepted."""

    leader_epoch: int
    session_epoch: int
    heartbeat_ms: int
    lease_ms: int
    fence_ms: int
    protocol: int = 1
    telemetry_ms: int = 0
    redial_ms: int = 0
    """When this controller has ended, nodes come to the next one spread over so long."""


class Ack(NamedTuple):
    """A heartbeat was heard."""

    sequence: int


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """A session ends: `is_fatal` when dialling again cannot help."""

    code: str
    message: str
    hint: str = ""
    is_fatal: bool = False
    retry_after_ms: int = 1000


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The data plane of a node that other nodes may get a file from."""

    node_id: str
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class FileOrder:
    """One file that a node should bring; `want_id` is "" when it belongs to a replica, which gives it a `path`.

    `formats` are what the engines that a pull is for eat, best first; empty: anything. `peers` are tried before
    `source`; with neither the node waits, since another one brings the content first.
    """

    want_id: PullId
    source: str
    sha256: str
    size_bytes: int
    is_cancelled: bool = False
    path: str = ""
    formats: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReplicaOrder:
    """One replica that a node should hold in the state `desired`.

    `secret_mark` changes with the secret's value, which is not here: it is put in where the message is rendered.
    """

    replica_id: ReplicaId
    deployment: str
    served_name: str
    engine: str
    engine_version: str
    settings: Mapping[str, Any]
    files: tuple[FileOrder, ...]
    promises: Mapping[DeviceId, int]
    desired: Desired
    runtime: str = Runtime.PROCESS.value
    image: str = ""
    secret_name: str = ""
    secret_mark: str = ""


@dataclass(frozen=True, kw_only=True)
class EngineOrder:
    """One version of an engine that a node should bring or take away, or one that runs there and should be read."""

    engine: str
    version: str
    source: str = ""
    is_removed: bool = False
    adopt_url: str = ""


@dataclass(frozen=True, kw_only=True)
class DesiredSet:
    """The whole desired set of one node; what is absent is stopped."""

    leader_epoch: int
    generation: int
    replicas: tuple[ReplicaOrder, ...]
    files: tuple[FileOrder, ...]
    removed_files: tuple[Sha256, ...] = ()
    engines: tuple[EngineOrder, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LogAsk:
    """A question for a replica's log; `is_cancel` ends a followed one."""

    request_id: str
    replica_id: ReplicaId
    tail_lines: int
    follow: bool
    is_cancel: bool = False


@dataclass(frozen=True, kw_only=True)
class Revoked:
    """The certificates that a node's data plane must not trust any more: all of them, each time."""

    serials: frozenset[str]


ControllerMessage = Welcome | Ack | Refuse | DesiredSet | LogAsk | Revoked


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """One node as its row says; `generation` and `desired_digest` are of the last dispatched desired set.

    `joined_at` is None for the node of the controller's own machine.
    """

    node_id: str
    name: str
    machine_id: str
    boot_id: str
    agent_version: str
    hostname: str
    system: str
    machine: str
    cpu_count: int
    memory_bytes: int
    disk_total_bytes: int
    labels: Mapping[str, str]
    engines: Sequence[Mapping[str, Any]]
    state: str
    is_cordoned: bool
    session_epoch: int
    generation: int
    desired_digest: str
    created_at: datetime
    plane_host: str
    plane_port: int
    is_approved: bool
    joined_at: datetime | None
    drain_since: datetime | None = None
    is_drain_forced: bool = False


@dataclass(frozen=True, kw_only=True)
class DeviceRow:
    """One device of a node as it was at the last hello."""

    node_id: str
    device_id: str
    kind: str
    name: str
    total_bytes: int
    is_simulated: bool

    def reading(self) -> DeviceReading:
        """Return it as a reading that knows nothing of the present: no free bytes."""
        return DeviceReading(
            device_id=DeviceId(self.device_id),
            kind=DeviceKind(self.kind),
            name=self.name,
            total_bytes=self.total_bytes,
            free_bytes=0,
            is_simulated=self.is_simulated,
        )


class NodeNow(NamedTuple):
    """One node as the controller knows it at this moment: the live half, which no table holds.

    `is_heard` says whether it was heard of since this controller began; `observed_version` grows with each
    observation that differs in more than progress and memory; `sent_generation` is 0 when this session was sent none.
    The replicas of one that `is_held` are not placed anew though it is lost (`controller.fleet.brake`); `returned_s`
    are the seconds since it came back from being lost; `rivals` counts other machines that came by its name;
    `measured_s` is the age of what `devices` and `disk_free_bytes` say, None while this reign has heard no readings.
    A tuple, because each pass makes one of every node.
    """

    node_id: NodeId
    name: str
    state: NodeState
    silent_s: float
    is_heard: bool
    is_connected: bool
    devices: tuple[DeviceReading, ...]
    disk_free_bytes: int
    applied_generation: int
    sent_generation: int
    session_epoch: int
    observation: Observation | None
    observed_version: int
    plane_host: str = ""
    plane_port: int = 0
    is_held: bool = False
    is_flapping: bool = False
    returned_s: float | None = None
    rivals: int = 0
    measured_s: float | None = None
    protocol: int | None = None
