"""The values of the route table and of the doors that hold it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from core.ids import ReplicaId
from core.states import NodeState


@dataclass(frozen=True, kw_only=True)
class RoutableReplica:
    """One replica that could be routed to: it is ready and wanted; the table looks at its node.

    `version` is the number of the model's version that it serves: during a change of versions not its deployment's.
    """

    replica_id: ReplicaId
    incarnation: int
    host: str
    port: int
    node_state: NodeState
    is_silent_past_lease: bool
    version: int
    base_url: str = ""
    node_id: str = ""
    plane_host: str = ""
    plane_port: int = 0


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a deployment's model, for the lists that clients show; 0 and "" where nothing is.

    `digest` is the version's, 64 hexadecimal digits; `served_context` are the tokens that its engines take,
    `context_length` those that it was made for; `memory_bytes` are promised to one replica, `device_bytes` of them
    elsewhere than on the CPU; `capabilities` are names of `adapters.contract.Capability`, sorted.
    """

    digest: str = ""
    size_bytes: int = 0
    format: str = ""
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    context_length: int = 0
    served_context: int = 0
    embedding_length: int = 0
    capabilities: tuple[str, ...] = ()
    memory_bytes: int = 0
    device_bytes: int = 0


NO_CARD = Card()


@dataclass(frozen=True, kw_only=True)
class RoutableDeployment:
    """One deployment with its routable replicas; `waiting` is a sentence without numbers that move by themselves.

    `disabled` is "" while it is enabled, else what doors answer (a `core.states.DisabledAnswer`).
    """

    name: str
    model: str
    engine: str
    endpoints: tuple[str, ...]
    replicas: tuple[RoutableReplica, ...]
    waiting: str
    created_at: datetime
    version: int
    disabled: str = ""
    served_name: str = ""
    """What the engine calls the model, "" when that is the deployment's name."""
    secret: str | None = field(default=None, repr=False)
    """The key of engines that run elsewhere ("" for none); None when each engine's key is derived."""
    card: Card = NO_CARD


@dataclass(frozen=True, kw_only=True)
class RoutableAlias:
    """One alias: it stands for a model, or for version `version` of it."""

    name: str
    model: str
    version: int | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests of a route go; `plane_host` is "" unless it is on another machine, reached by its data plane."""

    replica_id: ReplicaId
    incarnation: int
    host: str
    port: int
    engine_key: str = field(repr=False)
    base_url: str = ""
    node_id: str = ""
    plane_host: str = ""
    plane_port: int = 0


@dataclass(frozen=True, kw_only=True)
class Route:
    """One public name; without targets it exists but nothing serves it, and `waiting` says why.

    `disabled` is "" while its deployment is enabled, else a `core.states.DisabledAnswer`.
    """

    public_name: str
    deployment: str
    served_name: str
    engine: str
    endpoints: tuple[str, ...]
    targets: tuple[Target, ...]
    waiting: str
    created_unix_s: int
    disabled: str = ""
    model: str = ""
    version: int = 0
    card: Card = NO_CARD


@dataclass(frozen=True, kw_only=True)
class KeyEntry:
    """One key as doors check it; `expires_unix_s` 0 means never."""

    kid: str
    digest: bytes = field(repr=False)
    project: str
    expires_unix_s: int
    is_revoked: bool


@dataclass(frozen=True, kw_only=True)
class Table:
    """All routes and keys; the version is given when it is published."""

    routes: tuple[Route, ...] = ()
    keys: tuple[KeyEntry, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table under its version."""

    version: int
    table: Table


@dataclass(frozen=True, kw_only=True)
class DoorReport:
    """What a door says: the version it serves by, its streams per replica, and names asked for in vain."""

    door_id: str
    applied_version: int
    loads: Mapping[ReplicaId, int] = field(default_factory=dict)
    demand: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DoorNow:
    """One door as it is known now."""

    door_id: str
    applied_version: int
    last_seen_s_ago: float
    in_flight: int
