"""Values that the controller's services hand to each other, since they may not import one another.

Frozen data only: what a node reported (made at the gRPC edge, read by registry and deployments), and what a deployment
needs to know of a model version (made by the registry). Nothing here decides or acts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from adapters.contract import ModelFacts
from core.ids import ModelName, NodeId, PullId, ReplicaId, Sha256, VersionId
from core.states import InstallState, PullState, ReplicaState


@dataclass(frozen=True, kw_only=True)
class AdoptedPlace:
    """Where a model without a file of ours is served from: the node, its engine's loopback URL, its name there."""

    node_name: str
    base_url: str
    remote_model: str


@dataclass(frozen=True, kw_only=True)
class DeployableVersion:
    """One version of a model with all that a deployment needs of it.

    One that `is_adopted` lies in no store of ours; without a place no engine that is read has it any more.
    """

    version_id: VersionId
    model: ModelName
    number: int
    facts: ModelFacts
    file_digests: tuple[Sha256, ...]
    is_adopted: bool = False
    adopted: AdoptedPlace | None = None


@dataclass(frozen=True, kw_only=True)
class ReplicaReport:
    """One replica as its node sees it now; bytes and seconds as in `protos/slice/node/v1/node.proto`."""

    replica_id: ReplicaId
    incarnation: int
    state: ReplicaState
    code: str = ""
    message: str = ""
    log_tail: tuple[str, ...] = ()
    pid: int = 0
    host: str = ""
    port: int = 0
    load_s: float = 0.0
    memory_bytes: int = 0
    restarts: int = 0
    retry_in_s: float = 0.0
    base_url: str = ""


@dataclass(frozen=True, kw_only=True)
class VersionFile:
    """One file of a version: `path` within it, and a pinned source for this file alone ("": the version's)."""

    path: str
    sha256: Sha256
    size_bytes: int
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """One file of a node's store, or a pull on its way there; `want_id` is "" when no pull asked for it.

    Of a pull that is done `version_files` are all its files, the model's first, and `resolved_source` is its source
    with everything pinned. `used_unix_s` is the node's clock, 0 when it does not say.
    """

    want_id: PullId
    state: PullState
    bytes_done: int = 0
    bytes_total: int = 0
    sha256: Sha256 | None = None
    size_bytes: int = 0
    facts_json: str = ""
    code: str = ""
    message: str = ""
    chat_template_sha256: str = ""
    version_files: tuple[VersionFile, ...] = ()
    chat_template: str = ""
    template_findings: tuple[str, ...] = ()
    resolved_source: str = ""
    used_unix_s: int = 0


@dataclass(frozen=True, kw_only=True)
class EngineInstall:
    """One version of an engine on a node, or on its way there; bytes as in `node.proto`."""

    version: str
    state: InstallState
    code: str = ""
    message: str = ""
    digest: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class AdoptedModel:
    """One model of an engine that somebody else runs; `sha256` is what that engine calls its digest."""

    name: str
    sha256: Sha256
    size_bytes: int
    format: str = ""
    architecture: str = ""
    quantization: str = ""


@dataclass(frozen=True, kw_only=True)
class AdoptedEngine:
    """An engine that somebody else runs on a node; `message` says why it cannot be read now."""

    base_url: str
    version: str = ""
    models: tuple[AdoptedModel, ...] = ()
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class EngineFact:
    """Whether one engine can run on a node, on which devices, and if not, why; and all its versions there."""

    engine: str
    is_usable: bool
    reason: str
    device_kinds: tuple[str, ...]
    installed_versions: tuple[str, ...]
    installs: tuple[EngineInstall, ...] = ()
    adopted: AdoptedEngine | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Everything one node holds: it replaces what was known of the node."""

    node_id: NodeId
    applied_generation: int
    replicas: tuple[ReplicaReport, ...]
    files: tuple[FileReport, ...]
    engines: tuple[EngineFact, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """A machine whose token and request were found right, as it becomes a node."""

    node_id: NodeId
    name: str
    machine_id: str
    agent_version: str
    labels: Mapping[str, str]
    is_approved: bool
