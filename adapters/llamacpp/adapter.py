"""Describes llama.cpp: how it is installed, started, probed and measured.

In: host facts, model facts, settings, a launch request. Out: values. Called by the controller, the node agent and the
front door through `adapters.contract.Adapter`; starts nothing and reads no file.
"""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath

from adapters.contract import (
    Capability,
    ContainerSpec,
    Dialect,
    Endpoint,
    Fingerprint,
    Health,
    HostFacts,
    InstallPlan,
    Launch,
    LaunchRequest,
    ModelFacts,
    Runtime,
    Settings,
    SettingSpec,
)
from adapters.llamacpp.memory import Load, footprint
from core.devices import DeviceKind
from core.footprint import Footprint

_PROGRAM = str(PurePosixPath(__file__).parent / "program" / "serve.py")
_CONFIGURATION = "llamacpp.json"
_MACHINES = frozenset({"x86_64", "aarch64"})

SPECS = (
    SettingSpec(
        name="context",
        # 4096 holds a long conversation; more costs memory for every slot whether it is used or not.
        meaning="tokens that one request may use, prompt and answer together",
        kind=int,
        default=4096,
        minimum=128,
        maximum=1_048_576,
        capped_by="context_length",
    ),
    SettingSpec(
        name="slots",
        # Two let one person's request start while another's runs; each further slot costs a whole context of memory,
        # and on a CPU adds little speed.
        meaning="requests that run at the same time; the others wait",
        kind=int,
        default=2,
        minimum=1,
        maximum=64,
    ),
    SettingSpec(
        name="threads",
        meaning="CPU threads that compute; 0 means one for each physical core",
        kind=int,
        default=0,
        minimum=0,
        maximum=512,
    ),
    SettingSpec(
        name="batch",
        # llama.cpp's own default for a physical batch; also the longest input of an embedding.
        meaning="tokens computed at once; an embedding's input may not be longer",
        kind=int,
        default=512,
        minimum=32,
        maximum=8192,
    ),
    SettingSpec(
        name="embeddings",
        # The same process serves chat and embeddings with equal answers; off saves 2 x batch x vocabulary x 4 bytes.
        meaning="serve embeddings (mean of the last layer) beside chat; costs 2 x batch x vocabulary x 4 bytes",
        kind=bool,
        default=True,
    ),
    SettingSpec(
        name="cache_ram_mib",
        # llama.cpp's own default is 8192, which no footprint would foresee; each slot keeps its last prompt anyway.
        meaning="MiB of memory for prompts of earlier requests, besides those still in a slot",
        kind=int,
        default=0,
        minimum=0,
        maximum=1_048_576,
    ),
    SettingSpec(
        name="gpu_layers",
        # The wheel on the package index computes on the CPU only; a build for a GPU takes this as it is.
        meaning="layers computed on a GPU, -1 for as many as fit; without effect in CPU-only builds",
        kind=int,
        default=-1,
        minimum=-1,
        maximum=65_536,
    ),
)
_DEFAULTS = {spec.name: spec.default for spec in SPECS}


IMAGE_PROGRAM = "/opt/slice/llamacpp/serve.py"
"""Where an image of llama.cpp has `program/serve.py`."""


def _configuration(request: LaunchRequest) -> str:
    settings = {**_DEFAULTS, **request.settings}
    values = {
        "model_path": request.model_path,
        "served_name": request.served_name,
        "host": request.host,
        "port": request.port,
        "api_key": request.api_key,
        **{name: settings[name] for name in _DEFAULTS},
    }
    return json.dumps(values, indent=1)


class LlamaCpp:
    """The adapter of llama.cpp's server inside the Python package `xllamacpp`."""

    @property
    def name(self) -> str:
        """The engine's name."""
        return "llamacpp"

    @property
    def default_version(self) -> str:
        """The version of `xllamacpp` that a deployment gets when it pins none."""
        return "2026.10.11549"

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that this release knows: those whose server takes every parameter that `program/serve.py` sets."""
        return (self.default_version, "2026.9.11063")

    @property
    def runtimes(self) -> frozenset[Runtime]:
        """A process, or a container whose image has python3, xllamacpp and `program/serve.py` at `IMAGE_PROGRAM`."""
        return frozenset({Runtime.PROCESS, Runtime.CONTAINER})

    @property
    def formats(self) -> frozenset[str]:
        """Model formats it eats."""
        return frozenset({"gguf"})

    @property
    def setting_specs(self) -> tuple[SettingSpec, ...]:
        """Every setting a deployment may give."""
        return SPECS

    @property
    def health(self) -> Health:
        """`/health` needs no key, refuses connections while loading and answers 200 afterwards."""
        return Health(path="/health", start_timeout_s=600.0, stop_grace_s=5.0)

    @property
    def dialect(self) -> Dialect:
        """OpenAI's paths; a prompt that does not fit is 400 `exceed_context_size_error` (tools/server of llama.cpp).

        An embedding's input above one batch but within the context is a 500 `server_error`, known by its words only;
        so are messages and tools that it cannot parse, and pictures for a model that sees none. What it passes over
        in silence is refused: a tool by name (it takes words only), more answers than one (it counts the tokens of the
        first alone), and fields of OpenAI's that it does not read. `logprobs` as a number is that of completions,
        where it answers in the form of chats.
        """
        return Dialect(
            paths={
                Endpoint.CHAT: "/v1/chat/completions",
                Endpoint.COMPLETIONS: "/v1/completions",
                Endpoint.EMBEDDINGS: "/v1/embeddings",
            },
            overflow_types=frozenset({"exceed_context_size_error"}),
            overflow_phrases=("is too large to process",),
            is_deaf_while_whole=True,
            takes_template_values=True,
            tells_stream_usage=True,
            refused={
                "n": (1,),
                "tool_choice": ("none", "auto", "required"),
                "functions": ([],),
                "function_call": ("none", "auto"),
                "logprobs": (False, True),
                "echo": (False,),
                "best_of": (1,),
                "suffix": ("",),
                "dimensions": (),
            },
            refusal_phrases=("Failed to parse ", "you may need to provide the mmproj"),
        )

    @property
    def metrics(self) -> Mapping[str, str]:
        """Our metric name -> llama.cpp's."""
        return {
            "slice_engine_prompt_tokens_total": "llamacpp:prompt_tokens_total",
            "slice_engine_prompt_seconds_total": "llamacpp:prompt_seconds_total",
            "slice_engine_generated_tokens_total": "llamacpp:tokens_predicted_total",
            "slice_engine_generated_seconds_total": "llamacpp:tokens_predicted_seconds_total",
            "slice_engine_requests_running": "llamacpp:requests_processing",
            "slice_engine_requests_waiting": "llamacpp:requests_deferred",
        }

    def fingerprint(self, host: HostFacts) -> Fingerprint:
        """Return whether the package index has a wheel for `host`: Linux on x86_64 and aarch64."""
        if host.system != "linux" or host.machine not in _MACHINES:
            return Fingerprint(
                is_usable=False, reason=f"there is no build of llama.cpp for {host.system} on {host.machine}"
            )
        return Fingerprint(is_usable=True, device_kinds=frozenset({DeviceKind.CPU}))

    def install_plan(self, version: str) -> InstallPlan:
        """Return how `version` of `xllamacpp` is installed."""
        return InstallPlan(
            requirements=(f"xllamacpp=={version}",),
            probe="import xllamacpp; xllamacpp.Server",
            lock=str(PurePosixPath(__file__).parent / "locks" / f"{version}.txt"),
        )

    def launch(self, request: LaunchRequest) -> Launch:
        """Return the launcher's process; all it must know stands in a file, so that no key is in its argv."""
        path = PurePosixPath(request.work_dir) / _CONFIGURATION
        return Launch(argv=(request.python, "-I", _PROGRAM, str(path)), files={_CONFIGURATION: _configuration(request)})

    def container(self, request: LaunchRequest) -> ContainerSpec:
        """Return the same launcher as it lies in an image."""
        return ContainerSpec(
            entrypoint="python3",
            argv=("-I", IMAGE_PROGRAM, f"{request.work_dir}/{_CONFIGURATION}"),
            port=request.port,
            files={_CONFIGURATION: _configuration(request)},
        )

    def endpoints(self, settings: Settings) -> frozenset[Endpoint]:
        """Return chat and completions, and embeddings unless they are switched off."""
        always = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})
        return always | {Endpoint.EMBEDDINGS} if settings.get("embeddings", True) else always

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return its endpoints and what its server does within them (tools need a template that knows them)."""
        powers = {
            Capability.STREAM_USAGE,
            Capability.SEED,
            Capability.JSON_SCHEMA,
            Capability.TOOLS,
            Capability.LOGPROBS,
        }
        return frozenset({*(Capability(one.value) for one in self.endpoints(settings)), *powers})

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return the bytes of one replica on the CPU; unknown when the header leaves out a size."""
        whole = {**_DEFAULTS, **settings}

        def number(name: str) -> int:
            value = whole[name]
            return value if isinstance(value, int) else 0

        return footprint(
            facts,
            Load(
                context=number("context"),
                slots=number("slots"),
                batch=number("batch"),
                cache_ram_mib=number("cache_ram_mib"),
                embeddings=bool(whole["embeddings"]),
            ),
        )
