"""What the brain is allowed to see: one consistent picture of the cluster, as frozen values.

The controller's reconcile loop reads it in one repeatable-read transaction and hands it to `scheduler.plan.plan`.
Nothing here reads anything by itself; the clock is the field `now`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from core.devices import DeviceKind
from core.footprint import Footprint
from core.ids import DeploymentId, DeviceId, NodeId, ReplicaId, Sha256
from core.states import Desired, NodeState, ReplicaState


@dataclass(frozen=True, kw_only=True)
class DeviceView:
    """One device: `free_bytes` is what the device itself says now, other programs' use included."""

    device_id: DeviceId
    kind: DeviceKind
    total_bytes: int
    free_bytes: int


_NO_REASONS: Mapping[str, str] = MappingProxyType({})


class NodeView(NamedTuple):
    """One machine: `engines` are the usable ones with the device kinds they can use there.

    `engine_reasons` says of the others why not. `silent_s` is the time since the node was last heard of, in seconds.
    The replicas of one that `is_held` are not placed anew though it is lost. One that `is_flapping` takes replicas only
    when no other can. `returned_s` is the time since it came back from being lost, None when it never was. A tuple,
    because each pass makes one of every node.
    """

    node_id: NodeId
    name: str
    state: NodeState
    is_cordoned: bool
    silent_s: float
    devices: tuple[DeviceView, ...]
    file_digests: frozenset[Sha256]
    engines: Mapping[str, frozenset[DeviceKind]]
    engine_reasons: Mapping[str, str] = _NO_REASONS
    container_fault: str = ""
    """Why no container can be run there, "" when one can."""
    is_approved: bool = True
    """Whether an operator lets it work."""
    is_drain_forced: bool = False
    """Whether what is to leave it goes even when nothing can take its place; such a node is cordoned."""
    is_held: bool = False
    is_flapping: bool = False
    returned_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class DeploymentView:
    """What an operator wants: `replicas` engines of `generation`, each needing `footprint` on one device.

    `node_name` is the only node that may run them, "" for any. An external engine runs elsewhere, so that a node only
    watches it; a contained one comes with its image, so that the node's own fingerprint says nothing against it.
    """

    deployment_id: DeploymentId
    name: str
    generation: int
    replicas: int
    engine: str
    footprint: Footprint
    file_digests: tuple[Sha256, ...]
    is_deleting: bool
    node_name: str = ""
    is_external: bool = False
    is_contained: bool = False


@dataclass(frozen=True, kw_only=True)
class ReplicaView:
    """One placed replica: `generation` is its deployment's when it was placed.

    `promises` are the bytes of each device given to it, `measured_bytes` what it uses now (0 until it runs). One that
    `is_leaving` serves until its successor does; `move_to` is the only node for that successor, None for any other.
    """

    replica_id: ReplicaId
    deployment_id: DeploymentId
    generation: int
    node_id: NodeId
    state: ReplicaState
    desired: Desired
    promises: Mapping[DeviceId, int]
    measured_bytes: int
    created_at: datetime
    is_leaving: bool = False
    move_to: NodeId | None = None
    move_since: datetime | None = None
    """When that node was named."""
    restarts: int = 0
    """How often its engine was started again after it died."""
    succeeds: ReplicaId | None = None
    """The leaving replica that it was placed for, if that is still there."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The whole picture; `cpu_reserve_bytes` of each machine's main memory are never promised."""

    now: datetime
    nodes: tuple[NodeView, ...]
    deployments: tuple[DeploymentView, ...]
    replicas: tuple[ReplicaView, ...]
    cpu_reserve_bytes: int
