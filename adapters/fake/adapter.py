"""Describes the fake engine: a real server process for tests, demos and fire drills that needs no model.

In: host facts, settings, a launch request. Out: values. Called through `adapters.contract.Adapter`; starts nothing. It
ships in the product, so that an operator can rehearse an engine's death on a real cluster.
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
from core.devices import DeviceKind
from core.footprint import Footprint, Provenance
from core.units import MIB

_PROGRAM = str(PurePosixPath(__file__).parent / "program" / "serve.py")
_CONFIGURATION = "fake.json"
_PROCESS_BYTES = 24 * MIB
"""PSS of the program without a load is 13 MiB; threads of many streams add to it."""


def _whole(name: str, meaning: str, default: int = 0, minimum: int = 0, maximum: int = 1_000_000) -> SettingSpec:
    return SettingSpec(name=name, meaning=meaning, kind=int, default=default, minimum=minimum, maximum=maximum)


def _seconds(name: str, meaning: str) -> SettingSpec:
    return SettingSpec(name=name, meaning=meaning, kind=float, default=0.0, minimum=0.0, maximum=86_400.0)


def _switch(name: str, meaning: str) -> SettingSpec:
    return SettingSpec(name=name, meaning=meaning, kind=bool, default=False)


_SPECS = (
    _whole("tokens", "tokens of an answer whose request sets no limit", default=16, minimum=1),
    _whole("context", "tokens that prompt and answer may have together", default=4096, minimum=1),
    SettingSpec(
        name="token_delay_ms",
        meaning="milliseconds before each token",
        kind=float,
        default=0.0,
        minimum=0.0,
        maximum=3_600_000.0,
    ),
    _whole("memory_bytes", "bytes that it really allocates", maximum=2**50),
    _seconds("start_delay_s", "seconds during which /health answers 503"),
    _whole(
        "exit_at_start", "exit code with which it ends at once, -1 for not at all", default=-1, minimum=-1, maximum=255
    ),
    _whole("die_at_token", "kill itself before this token of an answer, counted from 1; 0 for never"),
    _whole("hang_at_token", "send nothing more from this token of an answer on, counted from 1; 0 for never"),
    _switch("malformed_stream", "send a broken event in the middle of a stream"),
    _switch("truncate_stream", "cut the connection in the middle of a stream"),
    _whole("http_status", "answer every request for tokens with this error status; 0 for none", maximum=599),
    _switch("ignore_sigterm", "do not end on SIGTERM"),
    _whole("fork_tree", "children in sessions of their own, with other names, that outlive it", maximum=64),
    _switch("hold_port", "a child keeps the listening port after it died"),
)
_DEFAULTS = {spec.name: spec.default for spec in _SPECS}


IMAGE_PROGRAM = "/opt/slice/fake/serve.py"
"""Where an image of the fake engine has `program/serve.py`."""


def _configuration(request: LaunchRequest) -> str:
    settings = {**_DEFAULTS, **request.settings}
    values = {
        "served_name": request.served_name,
        "host": request.host,
        "port": request.port,
        "api_key": request.api_key,
        **{name: settings[name] for name in _DEFAULTS},
    }
    return json.dumps(values, indent=1)


class Fake:
    """The adapter of the fake engine."""

    @property
    def name(self) -> str:
        """The engine's name."""
        return "fake"

    @property
    def default_version(self) -> str:
        """The version; it comes with Slice."""
        return "1"

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that this release knows."""
        return (self.default_version,)

    @property
    def runtimes(self) -> frozenset[Runtime]:
        """A process, or a container whose image has python3 and `program/serve.py` at `IMAGE_PROGRAM`."""
        return frozenset({Runtime.PROCESS, Runtime.CONTAINER})

    @property
    def formats(self) -> frozenset[str]:
        """It takes a model of any format, or none, and reads nothing of it."""
        return frozenset({"", "gguf", "safetensors"})

    @property
    def setting_specs(self) -> tuple[SettingSpec, ...]:
        """Every setting a deployment may give."""
        return _SPECS

    @property
    def health(self) -> Health:
        """`/health` needs no key and answers 503 until `start_delay_s` has passed."""
        return Health(path="/health", start_timeout_s=60.0, probe_interval_s=2.0, stop_grace_s=3.0)

    @property
    def dialect(self) -> Dialect:
        """OpenAI's paths, llama.cpp's word for a prompt that does not fit, and no request passed over in silence."""
        return Dialect(
            paths={
                Endpoint.CHAT: "/v1/chat/completions",
                Endpoint.COMPLETIONS: "/v1/completions",
                Endpoint.EMBEDDINGS: "/v1/embeddings",
            },
            overflow_types=frozenset({"exceed_context_size_error"}),
            tells_stream_usage=True,
            refused={
                "n": (1,),
                "tools": ([],),
                "tool_choice": ("none", "auto"),
                "functions": ([],),
                "response_format": ({"type": "text"},),
                "logprobs": (False,),
                "top_logprobs": (0,),
                "echo": (False,),
                "best_of": (1,),
                "suffix": ("",),
                "dimensions": (),
            },
        )

    @property
    def metrics(self) -> Mapping[str, str]:
        """Our metric name -> the program's."""
        return {
            "slice_engine_prompt_tokens_total": "fake:prompt_tokens_total",
            "slice_engine_generated_tokens_total": "fake:tokens_predicted_total",
            "slice_engine_requests_running": "fake:requests_processing",
            "slice_engine_requests_waiting": "fake:requests_deferred",
        }

    def fingerprint(self, host: HostFacts) -> Fingerprint:
        """Return that it runs wherever Linux's process calls do, on whatever devices the host has or pretends."""
        if host.system != "linux":
            return Fingerprint(is_usable=False, reason=f"the fake engine needs Linux, not {host.system}")
        kinds = {DeviceKind.CPU, *(device.kind for device in host.devices)}
        return Fingerprint(is_usable=True, device_kinds=frozenset(kinds))

    def install_plan(self, version: str) -> InstallPlan:
        """Return that there is nothing to install."""
        return InstallPlan(requirements=())

    def launch(self, request: LaunchRequest) -> Launch:
        """Return its process; key and settings stand in a file."""
        path = PurePosixPath(request.work_dir) / _CONFIGURATION
        return Launch(
            argv=(request.python, "-I", "-S", _PROGRAM, str(path)), files={_CONFIGURATION: _configuration(request)}
        )

    def container(self, request: LaunchRequest) -> ContainerSpec:
        """Return the same program as it lies in an image."""
        return ContainerSpec(
            entrypoint="python3",
            argv=("-I", "-S", IMAGE_PROGRAM, f"{request.work_dir}/{_CONFIGURATION}"),
            port=request.port,
            files={_CONFIGURATION: _configuration(request)},
        )

    def endpoints(self, settings: Settings) -> frozenset[Endpoint]:
        """Return all of them."""
        return frozenset(Endpoint)

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return its endpoints and usage in streams; it has no sampler, so no seed, schema, tools or logprobs."""
        return frozenset({*(Capability(one.value) for one in self.endpoints(settings)), Capability.STREAM_USAGE})

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return what it was told to allocate, and its process; the model's own size does not matter."""
        told = settings.get("memory_bytes", 0)
        return Footprint(
            weights_bytes=told if isinstance(told, int) else 0,
            kv_cache_bytes=0,
            compute_bytes=0,
            overhead_bytes=_PROCESS_BYTES,
            provenance=Provenance.COMPUTED,
        )
