"""What an engine's adapter tells about the engine: values only; the node agent acts on them.

An adapter is a module-level object that satisfies `Adapter`. The controller asks it for settings, capabilities and
footprints, the node agent for install and launch plans, the front door for its dialect. It starts nothing, reads no
file, and knows no other adapter. `adapters/registry.py` lists them; a new engine is one folder and one line there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from core.devices import DeviceKind, DeviceReading
from core.footprint import Footprint
from core.ids import DeviceId, ReplicaId, Sha256

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]
Settings = Mapping[str, JsonValue]


class Endpoint(StrEnum):
    """OpenAI endpoints that an engine may serve natively."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


OPENAI_PATHS: Mapping[Endpoint, str] = {
    Endpoint.CHAT: "/v1/chat/completions",
    Endpoint.COMPLETIONS: "/v1/completions",
    Endpoint.EMBEDDINGS: "/v1/embeddings",
}
"""Where an engine answers an endpoint for which its dialect names no path of its own."""


class Capability(StrEnum):
    """What a deployment may require of its engine: endpoints, and powers within them."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    STREAM_USAGE = "stream_usage"  # usage in the last chunk of a stream when asked for
    SEED = "seed"  # the same seed and request give the same sampled answer
    JSON_SCHEMA = "json_schema"  # response_format json_schema constrains the answer
    TOOLS = "tools"  # tool definitions are rendered and calls parsed
    LOGPROBS = "logprobs"
    SLEEP = "sleep"  # can give its device memory back without ending
    LORA = "lora"


class Runtime(StrEnum):
    """How a replica's engine is brought to life."""

    PROCESS = "process"  # a program of the node, under a shim
    CONTAINER = "container"  # podman or docker runs an image; the client runs under a shim
    EXTERNAL = "external"  # nothing is started: the engine runs elsewhere and is only probed and routed to


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What an adapter may know of a machine when it says whether its engine can run there.

    `executables` maps the name of each binary that an adapter asks for (`InstallPlan.binary`) to its absolute path,
    for those found on the node; `installed` maps an engine to the versions that are installed there.
    """

    system: str  # platform.system().lower(): "linux"
    machine: str  # platform.machine(): "x86_64"
    cpu_count: int
    memory_bytes: int
    devices: tuple[DeviceReading, ...]
    executables: Mapping[str, str] = field(default_factory=dict)
    installed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Whether an engine can run on a host, on which kinds of devices, and if not, why."""

    is_usable: bool
    device_kinds: frozenset[DeviceKind] = frozenset()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Binary:
    """An engine that is a program of its own, not a Python package.

    `executable` is looked up on the node's PATH, or installed by an operator from a verified file. `version_argv` are
    the arguments that make it print its version, the first group of `version_pattern` (a regular expression) is it.
    """

    executable: str
    version_argv: tuple[str, ...] = ("--version",)
    version_pattern: str = r"(\d+(?:\.\d+)+)"


@dataclass(frozen=True, kw_only=True)
class InstallPlan:
    """How one version of an engine comes onto a node.

    `requirements` are exact pins for `pip install` into a virtual environment of its own (empty, and no `binary`:
    nothing to install, `python` is the node agent's own interpreter). `lock` is the absolute path of a file in pip's
    requirements format with a hash for every distribution, "" when there is none: with it pip runs in hash-checking
    mode. `removed` are distributions to uninstall afterwards. `probe` is Python code that must run in the environment
    and exit 0, proving that the engine imports. `binary` is set for an engine that is no Python package.
    """

    requirements: tuple[str, ...]
    probe: str = ""
    lock: str = ""
    removed: tuple[str, ...] = ()
    binary: Binary | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model version without loading it; sizes in bytes, None where the header does not say."""

    format: str  # "gguf", "safetensors"; "" for engines that need no file (fake, openai)
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
class ModelFile:
    """One file of a version on the node: `path` is relative to the version, `stored_at` absolute, in the store."""

    path: str
    sha256: Sha256
    size_bytes: int
    stored_at: str


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """All an adapter may use to write a command line.

    `model_path` is the absolute path of the one GGUF file, or of a directory that holds the version's files under
    their own names (hard links into the store), "" when the format needs none. `files` are the same files one by one,
    for engines with a layout of their own (`Launch.links`).
    """

    replica_id: ReplicaId
    engine_version: str
    python: str  # interpreter of the engine's environment, absolute path; the node agent's own when there is none
    executable: str = ""  # absolute path of the engine's binary, for engines with `InstallPlan.binary`
    model_path: str
    files: tuple[ModelFile, ...] = ()
    served_name: str
    settings: Settings
    devices: tuple[DeviceId, ...]
    host: str  # always a loopback address
    port: int
    api_key: str  # the engine must ask for it where it knows API keys
    work_dir: str  # private to this replica; `Launch.files` are written below it


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One engine process to be: absolute argv, the whole of its environment beyond an allow-listed base, files.

    `files` and `links` name places relative to the work directory: texts written 0600, and hard links to files of the
    store (absolute paths), both made before the spawn.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HttpStep:
    """One HTTP call that the node agent makes to an engine that answers its probe but is not ready yet.

    `body` is sent as JSON (None: no body); `statuses` are those that count as done; a step may be made again after the
    node agent's restart, so it must be idempotent. The engine's key is sent as a bearer token.
    """

    method: str
    path: str
    body: JsonValue = None
    statuses: frozenset[int] = frozenset({200})
    timeout_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Remote:
    """An engine that runs elsewhere: `base_url` is http or https with an optional path, without `/v1`.

    `model` is what it calls the model, "" when that is the deployment's name. `is_local` says that the address is the
    node's own loopback.
    """

    base_url: str
    probe_path: str  # below `base_url`, answered with `Health.ready_status` when it is well
    model: str = ""
    is_local: bool = False


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """What to run in an image: arguments after the entry point, environment, the port it listens on in there.

    Paths in `argv` are those inside: the model lies read-only at `model_mount`, the work directory at `work_mount`.
    """

    argv: tuple[str, ...]
    port: int
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    entrypoint: str = ""


MODEL_MOUNT, WORK_MOUNT = "/slice/model", "/slice/work"
"""Where a container sees the model's files (read-only) and the replica's work directory."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """How readiness is seen: GET `path` answers `ready_status`; deadlines in seconds.

    An engine with provisioning steps is ready only when they are done as well.
    """

    path: str
    ready_status: int = 200
    start_timeout_s: float = 600.0
    probe_interval_s: float = 5.0
    probe_timeout_s: float = 5.0
    failures_to_unhealthy: int = 3
    stop_grace_s: float = 10.0


class Api(StrEnum):
    """Whose HTTP API the front door speaks to an engine."""

    OPENAI = "openai"
    OLLAMA = "ollama"  # requests and answers are translated; see gateway/ollama


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How the engine's HTTP differs from OpenAI's, as data that the front door's code reads.

    `api` is the API that `paths` belong to.

    `overflow_types` are error `type` values that mean the prompt does not fit: they become
    `context_length_exceeded`; so do errors whose message holds one of `overflow_phrases`, for engines that say it under
    a type of many meanings. `paths` maps an endpoint to the engine's own path.

    `renames` maps a top-level request field to the engine's name for it (kept as it is when that one is given too).
    `refused` are fields that the engine would ignore or break on in silence: a request that sets one to anything but
    null and its entry's harmless values is refused with its name (but for `n`: the engine is asked that many times, and
    a `tool_choice` by name, where `required` is harmless: that tool alone is sent). `defaults` are fields added when
    the client gave none. `dropped` are fields left out when they have one of these values: OpenAI's own defaults that
    the engine refuses to hear. `lists` are fields of which the engine takes lists only: a text is wrapped.
    `schema_member` is where the engine looks for the schema in `response_format`. `is_deaf_while_whole` says that the
    engine notices a client that left only while it streams: a whole answer is then asked for as a stream and put
    together by the door.

    `finish_reasons` maps the engine's words for the end of an answer to OpenAI's (None: it goes on). `keeps_stop` says
    that it leaves the stop string that ended an answer in its text: the door cuts it off.

    `name_tag` is what the engine appends to the served name in its answers (Ollama's `:latest`). `fixed_model` is what
    every request must call the model, whatever the engine calls it in its answers ("" : the served name).
    `takes_template_values` says that `chat_template_kwargs` reach the chat template: how a model is told not to think.
    `tells_stream_usage` says that it knows `stream_options.include_usage`: the door asks for it to count every stream,
    and takes what came of it out again for a client that did not ask.
    """

    paths: Mapping[Endpoint, str]
    api: Api = Api.OPENAI
    overflow_types: frozenset[str] = frozenset()
    overflow_phrases: tuple[str, ...] = ()
    refusal_phrases: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, tuple[JsonValue, ...]] = field(default_factory=dict)
    defaults: Mapping[str, JsonValue] = field(default_factory=dict)
    dropped: Mapping[str, tuple[JsonValue, ...]] = field(default_factory=dict)
    lists: frozenset[str] = frozenset()
    schema_member: str = "json_schema"
    is_deaf_while_whole: bool = False
    finish_reasons: Mapping[str, str | None] = field(default_factory=dict)
    keeps_stop: bool = False
    name_tag: str = ""
    fixed_model: str = ""
    takes_template_values: bool = False
    tells_stream_usage: bool = False


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
    def versions(self) -> tuple[str, ...]:
        """Versions that this release knows how to install, newest first; the default is among them."""

    @property
    def runtimes(self) -> frozenset[Runtime]:
        """Ways in which the engine can be brought to life."""

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

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return all that a deployment with these settings may require, endpoints included."""

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return the bytes one replica needs on one device."""


@dataclass(frozen=True, kw_only=True)
class AdoptedModel:
    """One model of an engine that is not ours; `sha256` is what that engine calls its digest, "" when it gives none."""

    name: str
    sha256: str
    size_bytes: int
    format: str
    architecture: str
    quantization: str


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What a running engine that is not ours says of itself."""

    version: str
    models: tuple[AdoptedModel, ...]


# -- optional powers: an adapter has one when it satisfies the Protocol ------------------------------------------------


@runtime_checkable
class Provisioned(Protocol):
    """An engine that must be told its model over HTTP after it answers its probe (Ollama)."""

    def provision(self, request: LaunchRequest) -> tuple[HttpStep, ...]:
        """Return the calls that make it ready, in order."""


@runtime_checkable
class External(Protocol):
    """An engine that is not ours to start: a remote endpoint, or a program that somebody else runs on the node."""

    def remote(self, settings: Settings) -> Remote:
        """Return where it is.

        Raises:
            Failure: `engine.setting_invalid`.
        """


@runtime_checkable
class Containerised(Protocol):
    """An engine that can run from an image."""

    def container(self, request: LaunchRequest) -> ContainerSpec:
        """Return what to run inside; `request`'s paths, host and port are those inside the container."""


@runtime_checkable
class Floored(Protocol):
    """An engine with versions that must not be run."""

    @property
    def floor(self) -> tuple[str, str]:
        """The lowest safe version, and the advisories that set it."""


@runtime_checkable
class Adoptable(Protocol):
    """An engine that others may have started on a node: it is read over HTTP on loopback and never written.

    Its models have no file of ours, so they have a format of their own, which bears the engine's name and is among
    `formats`; they are served with the runtime `external`.
    """

    @property
    def adoption_paths(self) -> tuple[str, str]:
        """What is asked by GET: its version, its models."""

    def adopted(self, version_body: bytes, models_body: bytes) -> Adopted:
        """Return what the two answers say.

        Raises:
            Failure: `request.invalid_json` when they are not this engine's.
        """
