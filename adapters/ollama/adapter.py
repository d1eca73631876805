"""Describes Ollama: one `ollama serve` for each replica, or one that runs already and is adopted.

In: host facts, model facts, settings, a launch request. Out: values. Called by the controller, the node agent and the
front door through `adapters.contract`; starts nothing and reads no file. What is behind each choice stands in
`design.md`.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from adapters.contract import (
    Adopted,
    Api,
    Binary,
    Capability,
    Dialect,
    Endpoint,
    Fingerprint,
    Health,
    HostFacts,
    HttpStep,
    InstallPlan,
    JsonValue,
    Launch,
    LaunchRequest,
    ModelFacts,
    Remote,
    Runtime,
    Settings,
    SettingSpec,
)
from adapters.ollama import adoption
from adapters.ollama.adoption import DEFAULT_ADDRESS, MODELS_PATH, VERSION_PATH
from adapters.ollama.memory import footprint
from core.devices import CPU_DEVICE, DeviceKind
from core.errors import Failure
from core.footprint import UNKNOWN_FOOTPRINT, Footprint

_EXECUTABLE = "ollama"
_LOOPBACK = re.compile(r"^(?:http://)?(127(?:\.\d{1,3}){3}|localhost|\[::1\])(?::(\d{1,5}))?/?\Z")
_CHAT, _EMBEDDINGS = "chat", "embeddings"

_SPECS = (
    SettingSpec(
        name="context",
        # Below 8192 Ollama lets an answer that outgrows the context push the beginning out; from there on it ends it.
        meaning="tokens that one request may use, prompt and answer together",
        kind=int,
        default=8192,
        minimum=128,
        maximum=1_048_576,
        capped_by="context_length",
    ),
    SettingSpec(
        name="slots",
        meaning="requests that run at the same time; the others wait; each slot costs a whole context of memory",
        kind=int,
        default=1,
        minimum=1,
        maximum=64,
    ),
    SettingSpec(
        name="task",
        # Ollama runs a model either as a generator or, when its file names a pooling, as an embedder.
        meaning="what the model is for: chat (and completions), or embeddings, for models with a pooling of their own",
        kind=str,
        default=_CHAT,
        choices=(_CHAT, _EMBEDDINGS),
    ),
    SettingSpec(
        name="threads",
        meaning="CPU threads that compute; 0 leaves the choice to Ollama",
        kind=int,
        default=0,
        minimum=0,
        maximum=512,
    ),
    SettingSpec(
        name="cache_type",
        meaning="number format of the KV cache; the smaller ones need flash attention",
        kind=str,
        default="f16",
        choices=("f16", "q8_0", "q4_0"),
    ),
    SettingSpec(
        name="address",
        meaning="for an adopted Ollama: where it listens on its node's loopback, HOST:PORT",
        kind=str,
        default=DEFAULT_ADDRESS,
    ),
    SettingSpec(
        name="remote_model",
        meaning='for an adopted Ollama: its own name for the model, e.g. "llama3.2:3b"; "" for the deployment\'s name',
        kind=str,
        default="",
    ),
)
_DEFAULTS = {spec.name: spec.default for spec in _SPECS}


class Ollama:
    """The adapter of Ollama; also `Provisioned`, `External`, `Adoptable` and `Floored`."""

    @property
    def name(self) -> str:
        """The engine's name."""
        return "ollama"

    @property
    def default_version(self) -> str:
        """The version whose source this adapter was written against; a node runs the one that it has."""
        return "0.33.0"

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that this release knows."""
        return (self.default_version,)

    @property
    def floor(self) -> tuple[str, str]:
        """Before 0.17.1 a hostile GGUF could read the server's memory."""
        return ("0.17.1", "CVE-2026-7482")

    @property
    def runtimes(self) -> frozenset[Runtime]:
        """A process of ours, or somebody else's on the node."""
        return frozenset({Runtime.PROCESS, Runtime.EXTERNAL})

    @property
    def formats(self) -> frozenset[str]:
        """GGUF, and what an adopted Ollama has in its own store; some safetensors as well, which was never tried."""
        return frozenset({"gguf", "ollama"})

    @property
    def setting_specs(self) -> tuple[SettingSpec, ...]:
        """Every setting a deployment may give."""
        return _SPECS

    @property
    def health(self) -> Health:
        """The server answers at once; that the model is loaded is the last provisioning step's business."""
        return Health(path=VERSION_PATH, start_timeout_s=600.0, stop_grace_s=10.0)

    @property
    def dialect(self) -> Dialect:
        """Ollama's own API: its imitation of OpenAI's cannot be told to refuse a prompt that does not fit.

        The phrases are those of llm/llama_server.go, server/routes.go and, before 0.30, runner/ollamarunner.
        """
        return Dialect(
            api=Api.OLLAMA,
            paths={
                Endpoint.CHAT: "/api/chat",
                Endpoint.COMPLETIONS: "/api/generate",
                Endpoint.EMBEDDINGS: "/api/embed",
            },
            overflow_phrases=(
                "exceeds the available context size",
                "input length exceeds the context length",
                "exceeds maximum context length",
                "exceeded max context length",
                "longer than the context length",
            ),
            refused={
                "n": (1,),
                "tool_choice": ("auto", "none"),
                "logit_bias": ({},),
                "best_of": (1,),
                "echo": (False,),
                "suffix": ("",),
                "parallel_tool_calls": (True,),
                "functions": ([],),
                "function_call": ("none", "auto"),
            },
        )

    @property
    def metrics(self) -> Mapping[str, str]:
        """Ollama has no metrics page."""
        return {}

    def fingerprint(self, host: HostFacts) -> Fingerprint:
        """Return whether the program is on the node's PATH; the CPU is all it is offered on (design.md: Devices)."""
        if host.system != "linux":
            return Fingerprint(is_usable=False, reason=f"Slice runs Ollama on Linux only, not on {host.system}")
        if _EXECUTABLE not in host.executables:
            return Fingerprint(
                is_usable=False, reason="there is no program 'ollama' on this node; install Ollama, or put it on PATH"
            )
        return Fingerprint(is_usable=True, device_kinds=frozenset({DeviceKind.CPU}))

    def install_plan(self, version: str) -> InstallPlan:
        """Return that it is a program of its own.

        `ollama --version` tells the version of a server that happens to run, and its own only in a second line when
        that is another one: the pattern prefers that line.
        """
        pattern = r"(?s)(?:.*client version is|.*version is) v?(\d+(?:\.\d+)+)"
        return InstallPlan(requirements=(), binary=Binary(executable=_EXECUTABLE, version_pattern=pattern))

    def launch(self, request: LaunchRequest) -> Launch:
        """Return a server with a store of its own, into which the model's files are linked as blobs."""
        settings = {**_DEFAULTS, **request.settings}
        work = PurePosixPath(request.work_dir)
        env = {
            "HOME": str(work / "home"),
            "OLLAMA_HOST": f"{request.host}:{request.port}",
            "OLLAMA_MODELS": str(work / "models"),
            # Its server removes at its start every blob that no manifest names, and ours come before theirs.
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_CONTEXT_LENGTH": str(settings["context"]),
            "OLLAMA_NUM_PARALLEL": str(settings["slots"]),
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_KV_CACHE_TYPE": str(settings["cache_type"]),
            "OLLAMA_NOHISTORY": "1",
            "OLLAMA_NO_CLOUD": "1",
        }
        if all(device == CPU_DEVICE for device in request.devices):
            env["OLLAMA_LLM_LIBRARY"] = "cpu"
        links = {f"models/blobs/sha256-{file.sha256}": file.stored_at for file in request.files}
        return Launch(argv=(request.executable, "serve"), env=env, links=links)

    def provision(self, request: LaunchRequest) -> tuple[HttpStep, ...]:
        """Return: see that the blobs are there, name the model, load it for ever; each may be made again."""
        settings = {**_DEFAULTS, **request.settings}
        digests = {_file_name(request, file.path): f"sha256:{file.sha256}" for file in request.files}
        # A request that sets no limit would run for ten contexts.
        parameters: dict[str, JsonValue] = {"num_predict": settings["context"]}
        if settings["threads"]:
            parameters["num_thread"] = settings["threads"]
        create: JsonValue = {
            "model": request.served_name,
            "files": {**digests},
            "parameters": parameters,
            "stream": False,
        }
        checks = tuple(HttpStep(method="HEAD", path=f"/api/blobs/{digest}") for digest in digests.values())
        return (*checks, HttpStep(method="POST", path="/api/create", body=create), _load(request.served_name, settings))

    def remote(self, settings: Settings) -> Remote:
        """Return where an adopted Ollama is: on the node's own loopback, since it asks nobody for a key.

        Raises:
            Failure: `engine.setting_invalid`.
        """
        address = settings.get("address") or DEFAULT_ADDRESS
        found = _LOOPBACK.match(address) if isinstance(address, str) else None
        if found is None or not 0 < int(found[2] or 11434) < 65_536:
            raise Failure(
                "engine.setting_invalid",
                f"{str(address)[:80]!r} is no address of an Ollama on its node's loopback",
                hint=f"write HOST:PORT such as {DEFAULT_ADDRESS}; one on another machine joins through a node there",
                param="address",
            )
        model = settings.get("remote_model")
        return Remote(
            base_url=f"http://{found[1]}:{found[2] or 11434}",
            probe_path=VERSION_PATH,
            model=model if isinstance(model, str) else "",
            is_local=True,
        )

    @property
    def adoption_paths(self) -> tuple[str, str]:
        """Its version and its models; both are read-only."""
        return VERSION_PATH, MODELS_PATH

    def adopted(self, version_body: bytes, models_body: bytes) -> Adopted:
        """Return what a running Ollama says of itself.

        Raises:
            Failure: `request.invalid_json` when it is none.
        """
        return adoption.adopted(version_body, models_body)

    def endpoints(self, settings: Settings) -> frozenset[Endpoint]:
        """Return chat and completions, or embeddings, as `task` says."""
        if settings.get("task", _CHAT) == _EMBEDDINGS:
            return frozenset({Endpoint.EMBEDDINGS})
        return frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return its endpoints and what it does within them (tools need a template that knows them)."""
        endpoints = {Capability(one.value) for one in self.endpoints(settings)}
        if Capability.CHAT not in endpoints:
            return frozenset(endpoints)
        powers = {
            Capability.STREAM_USAGE,
            Capability.SEED,
            Capability.JSON_SCHEMA,
            Capability.TOOLS,
            Capability.LOGPROBS,
        }
        return frozenset({*endpoints, *powers})

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return an upper bound of the bytes of one replica; unknown when the header leaves out a size."""
        whole = {**_DEFAULTS, **settings}
        context, slots, cache_type = whole["context"], whole["slots"], whole["cache_type"]
        if not isinstance(context, int) or not isinstance(slots, int) or not isinstance(cache_type, str):
            return UNKNOWN_FOOTPRINT
        is_embedding = whole["task"] == _EMBEDDINGS
        return footprint(facts, context=context, slots=slots, cache_type=cache_type, is_embedding=is_embedding)


def _file_name(request: LaunchRequest, path: str) -> str:
    return PurePosixPath(path).name or f"{request.served_name}.gguf"


def _load(model: str, settings: Settings) -> HttpStep:
    body: dict[str, JsonValue] = {"model": model, "keep_alive": -1, "stream": False}
    if settings["task"] == _EMBEDDINGS:
        return HttpStep(method="POST", path="/api/embed", body={**body, "input": []})
    return HttpStep(method="POST", path="/api/generate", body=body)
