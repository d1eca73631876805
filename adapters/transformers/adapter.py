"""Describes transformers: how it is installed, started behind our own server, probed and measured.

In: host facts, model facts, settings, a launch request. Out: values. Called by the controller, the node agent and the
front door through `adapters.contract.Adapter`; starts nothing and reads no file.
"""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath

from adapters.contract import (
    Capability,
    Dialect,
    Endpoint,
    Fingerprint,
    Health,
    HostFacts,
    InstallPlan,
    JsonValue,
    Launch,
    LaunchRequest,
    ModelFacts,
    Runtime,
    Settings,
    SettingSpec,
)
from adapters.transformers.memory import Load, footprint
from core.devices import DeviceKind
from core.footprint import Footprint

_HOME = PurePosixPath(__file__).parent
_PROGRAM = str(_HOME / "program" / "serve.py")
_CONFIGURATION = "transformers.json"
_MACHINES = frozenset({"x86_64", "aarch64"})
_CUDA = "+cuda"
_PARTS = ("accelerate==1.15.0", "gguf==0.19.0", "jinja2==3.1.6")

_SPECS = (
    SettingSpec(
        name="context",
        meaning="tokens that one request may use, prompt and answer together",
        kind=int,
        default=4096,
        minimum=128,
        maximum=1_048_576,
        capped_by="context_length",
    ),
    SettingSpec(
        name="slots",
        # Requests are not computed together: each further one at the same time makes the others slower.
        meaning="requests that run at the same time; the others wait",
        kind=int,
        default=1,
        minimum=1,
        maximum=16,
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
        name="dtype",
        meaning="number format of weights, keys and values",
        kind=str,
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
    ),
    SettingSpec(
        name="embeddings",
        meaning="serve embeddings (mean of the last layer) beside chat",
        kind=bool,
        default=True,
    ),
)
_DEFAULTS = {spec.name: spec.default for spec in _SPECS}


def _number(settings: Mapping[str, JsonValue], name: str) -> int:
    value = settings[name]
    return value if isinstance(value, int) else 0


class Transformers:
    """The adapter of the Python package `transformers`."""

    @property
    def name(self) -> str:
        """The engine's name."""
        return "transformers"

    @property
    def default_version(self) -> str:
        """The version of `transformers` that a deployment gets when it pins none."""
        return "5.24.0"

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that this release knows; `+cuda` comes with the public index's torch, not the CPU's."""
        return (self.default_version, self.default_version + _CUDA)

    @property
    def runtimes(self) -> frozenset[Runtime]:
        """A process."""
        return frozenset({Runtime.PROCESS})

    @property
    def formats(self) -> frozenset[str]:
        """Model formats it eats."""
        return frozenset({"safetensors"})

    @property
    def setting_specs(self) -> tuple[SettingSpec, ...]:
        """Every setting a deployment may give."""
        return _SPECS

    @property
    def health(self) -> Health:
        """`/health` needs no key, refuses connections while loading and answers 200 afterwards."""
        return Health(path="/health", start_timeout_s=600.0, stop_grace_s=5.0)

    @property
    def dialect(self) -> Dialect:
        """OpenAI's paths; a prompt that does not fit is 400 `exceed_context_size_error`."""
        return Dialect(
            paths={
                Endpoint.CHAT: "/v1/chat/completions",
                Endpoint.COMPLETIONS: "/v1/completions",
                Endpoint.EMBEDDINGS: "/v1/embeddings",
            },
            overflow_types=frozenset({"exceed_context_size_error"}),
            tells_stream_usage=True,
            refused={"n": (1,)},
        )

    @property
    def metrics(self) -> Mapping[str, str]:
        """Our metric name -> the program's."""
        return {
            "slice_engine_prompt_tokens_total": "transformers:prompt_tokens_total",
            "slice_engine_prompt_seconds_total": "transformers:prompt_seconds_total",
            "slice_engine_generated_tokens_total": "transformers:generated_tokens_total",
            "slice_engine_generated_seconds_total": "transformers:generated_seconds_total",
            "slice_engine_requests_running": "transformers:requests_running",
            "slice_engine_requests_waiting": "transformers:requests_waiting",
        }

    def fingerprint(self, host: HostFacts) -> Fingerprint:
        """Return whether torch has a build for `host`: Linux on x86_64 and aarch64."""
        if host.system != "linux" or host.machine not in _MACHINES:
            return Fingerprint(
                is_usable=False, reason=f"there is no build of torch for {host.system} on {host.machine} here"
            )
        return Fingerprint(is_usable=True, device_kinds=frozenset({DeviceKind.CPU}))

    def install_plan(self, version: str) -> InstallPlan:
        """Return how `version` is installed: torch for the CPU, or with `+cuda` the build of the public index."""
        release, cuda, _ = version.partition(_CUDA)
        torch = "torch==2.13.0" if cuda else "torch==2.13.0+cpu"
        return InstallPlan(
            requirements=(f"transformers=={release}", torch, *_PARTS),
            probe="import torch, transformers; transformers.AutoModelForCausalLM",
            lock=str(_HOME / "locks" / f"{version}.txt"),
        )

    def launch(self, request: LaunchRequest) -> Launch:
        """Return the server's process; all it must know stands in a file, so that no key is in its argv."""
        configuration = {
            "model_path": request.model_path,
            "served_name": request.served_name,
            "host": request.host,
            "port": request.port,
            "api_key": request.api_key,
            **_DEFAULTS,
            **request.settings,
        }
        path = PurePosixPath(request.work_dir) / _CONFIGURATION
        return Launch(
            argv=(request.python, "-I", _PROGRAM, str(path)),
            env={
                "HOME": request.work_dir,  # caches of this replica are deleted with it
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },
            files={_CONFIGURATION: json.dumps(configuration, indent=1)},
        )

    def endpoints(self, settings: Settings) -> frozenset[Endpoint]:
        """Return chat and completions, and embeddings unless they are switched off."""
        always = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})
        return always | {Endpoint.EMBEDDINGS} if settings.get("embeddings", True) else always

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return its endpoints and what its server does within them; it has no grammars, so no schema and no tools."""
        powers = {Capability.STREAM_USAGE, Capability.SEED, Capability.LOGPROBS}
        return frozenset({*(Capability(one.value) for one in self.endpoints(settings)), *powers})

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return the bytes of one replica on the CPU; unknown when the header leaves out a size."""
        given = {**_DEFAULTS, **settings}
        width = 4 if given["dtype"] == "float32" else 2
        return footprint(facts, Load(context=_number(given, "context"), slots=_number(given, "slots"), width=width))
