"""What an engine's adapter tells about the engine: values only; the node agent acts on them.

An adapter is a module-level object that satisfies `Adapter`. The controller asks it for settings, capabilities and
footprints, the node agent for install and launch plans, the front door for its dialect. It starts nothing, reads no
file, and knows no other adapter. `adapters/registry.py` lists them; a new engine is one folder and one line there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from core.devices import DeviceKind, DeviceReading
from core.footprint import Footprint
from core.ids import DeviceId, ReplicaId

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]
Settings = Mapping[str, JsonValue]


class Endpoint(StrEnum):
    """OpenAI endpoints that an engine may serve natively."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What an adapter may know of a machine when it says whether its engine can run there."""

    system: str  # platform.system().lower(): "linux"
    machine: str  # platform.machine(): "x86_64"
    cpu_count: int
    memory_bytes: int
    devices: tuple[DeviceReading, ...]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Whether an engine can run on a host, on which kinds of devices, and if not, why."""

    is_usable: bool
    device_kinds: frozenset[DeviceKind] = frozenset()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class InstallPlan:
    """How an engine's own virtual environment is made.

    `requirements` are exact pins for `pip install` (empty: nothing to install, `python` is the node agent's own
    interpreter). `probe` is Python code that must run in the environment and exit 0, proving that the engine imports.
    """

    requirements: tuple[str, ...]
    probe: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model version without loading it; sizes in bytes, None where the header does not say."""

    format: str  # "gguf"; "" for the fake engine, which needs no file
    size_bytes: int
    architecture: str = ""
    quantization: str = ""
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    key_length: int | None = None
    value_length: int | None = None
    embedding_length: int | None = None
    feed_forward_length: int | None = None
    vocabulary: int | None = None
    context_length: int | None = None
    parameters: int | None = None
    tensor_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """All an adapter may use to write a command line."""

    replica_id: ReplicaId
    engine_version: str
    python: str  # interpreter of the engine's environment, absolute path
    model_path: str  # absolute path of the first file, "" when the format needs none
    served_name: str
    settings: Settings
    devices: tuple[DeviceId, ...]
    host: str  # always a loopback address
    port: int
    api_key: str  # the engine must ask for it where it knows API keys
    work_dir: str  # private to this replica; `Launch.files` are written below it


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One engine process to be: absolute argv, the whole of its environment beyond an allow-listed base, files."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # relative path -> text, written 0600 before the spawn


@dataclass(frozen=True, kw_only=True)
class Health:
    """How readiness is seen: GET `path` answers `ready_status`; deadlines in seconds."""

    path: str
    ready_status: int = 200
    start_timeout_s: float = 600.0
    probe_interval_s: float = 5.0
    probe_timeout_s: float = 5.0
    failures_to_unhealthy: int = 3
    stop_grace_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How the engine's HTTP differs from OpenAI's, as data that the front door's code reads.

    `overflow_types` are error `type` values that mean the prompt does not fit: they become
    `context_length_exceeded`; so do errors whose message holds one of `overflow_phrases`, for engines that say it under
    a type of many meanings. `paths` maps an endpoint to the engine's own path.
    """

    paths: Mapping[Endpoint, str]
    overflow_types: frozenset[str] = frozenset()
    overflow_phrases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SettingSpec:
    """One setting of a deployment: its meaning, unit and bounds; shown by `slice show` and checked at the edge.

    `capped_by` names the field of `ModelFacts` that bounds the value for one model, "" when none does.
    """

    name: str
    meaning: str
    kind: type  # int, float, bool or str
    default: JsonValue
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    capped_by: str = ""


class Adapter(Protocol):
    """The description of one engine."""

    @property
    def name(self) -> str:
        """The engine's name, e.g. `llamacpp`."""

    @property
    def default_version(self) -> str:
        """The version that a deployment gets when it pins none."""

    @property
    def formats(self) -> frozenset[str]:
        """Model formats the engine eats, e.g. {"gguf"}."""

    @property
    def setting_specs(self) -> tuple[SettingSpec, ...]:
        """Every setting a deployment may give."""

    @property
    def health(self) -> Health:
        """How its readiness is probed."""

    @property
    def dialect(self) -> Dialect:
        """How its HTTP differs from OpenAI's."""

    @property
    def metrics(self) -> Mapping[str, str]:
        """Our metric name -> the engine's own metric name on its /metrics page."""

    def fingerprint(self, host: HostFacts) -> Fingerprint:
        """Return whether the engine can run on `host`."""

    def install_plan(self, version: str) -> InstallPlan:
        """Return how `version` is installed."""

    def launch(self, request: LaunchRequest) -> Launch:
        """Return the process to start."""

    def endpoints(self, settings: Settings) -> frozenset[Endpoint]:
        """Return the OpenAI endpoints that the engine serves under these settings."""

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return the bytes one replica needs on one device."""
