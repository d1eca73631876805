"""Describes the echo engine, which says again what it is told.

In: host facts, settings, a launch request. Out: values. Called through `adapters.contract.Adapter`; starts nothing.
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
_CONFIGURATION = "echo.json"
_SPECS = (
    SettingSpec(
        name="context", meaning="characters of prompt and answer", kind=int, default=1024, minimum=1, maximum=65536
    ),
    SettingSpec(
        name="delay_ms", meaning="milliseconds a character", kind=float, default=0.0, minimum=0.0, maximum=1000.0
    ),
    SettingSpec(
        name="warm_up_s", meaning="seconds before it is ready", kind=float, default=0.0, minimum=0.0, maximum=60.0
    ),
)
_DEFAULTS = {spec.name: spec.default for spec in _SPECS}


class Echo:
    """The adapter of the echo engine."""

    @property
    def name(self) -> str:
        """The engine's name."""
        return "echo"

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
        """A process."""
        return frozenset({Runtime.PROCESS})

    @property
    def formats(self) -> frozenset[str]:
        """GGUF, of which it reads nothing."""
        return frozenset({"gguf"})

    @property
    def setting_specs(self) -> tuple[SettingSpec, ...]:
        """Every setting a deployment may give."""
        return _SPECS

    @property
    def health(self) -> Health:
        """`/health` needs no key and answers 503 until it is warm."""
        return Health(path="/health", start_timeout_s=60.0, probe_interval_s=2.0, stop_grace_s=3.0)

    @property
    def dialect(self) -> Dialect:
        """Chats alone; what it would pass over in silence is refused."""
        return Dialect(
            paths={Endpoint.CHAT: "/v1/chat/completions"},
            overflow_types=frozenset({"too_long"}),
            renames={"max_completion_tokens": "max_tokens"},
            refused={
                "n": (1,),
                "tools": ([],),
                "tool_choice": ("none", "auto"),
                "response_format": ({"type": "text"},),
                "logprobs": (False,),
            },
            lists=frozenset({"stop"}),
            is_deaf_while_whole=True,
        )

    @property
    def metrics(self) -> Mapping[str, str]:
        """Our metric name -> the program's."""
        return {
            "slice_engine_generated_tokens_total": "echo_characters_total",
            "slice_engine_requests_running": "echo_running",
        }

    def fingerprint(self, host: HostFacts) -> Fingerprint:
        """Return that it runs on the CPU of any Linux."""
        if host.system != "linux":
            return Fingerprint(is_usable=False, reason=f"the echo engine needs Linux, not {host.system}")
        return Fingerprint(is_usable=True, device_kinds=frozenset({DeviceKind.CPU}))

    def install_plan(self, version: str) -> InstallPlan:
        """Return that there is nothing to install."""
        return InstallPlan(requirements=())

    def launch(self, request: LaunchRequest) -> Launch:
        """Return its process; key and settings stand in a file."""
        values = {
            **_DEFAULTS,
            **request.settings,
            "name": request.served_name,
            "host": request.host,
            "port": request.port,
            "api_key": request.api_key,
        }
        path = PurePosixPath(request.work_dir) / _CONFIGURATION
        return Launch(
            argv=(request.python, "-I", "-S", _PROGRAM, str(path)), files={_CONFIGURATION: json.dumps(values)}
        )

    def endpoints(self, settings: Settings) -> frozenset[Endpoint]:
        """Return chats."""
        return frozenset({Endpoint.CHAT})

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return chats, and usage in their streams."""
        return frozenset({Capability.CHAT, Capability.STREAM_USAGE})

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return its process alone, measured."""
        return Footprint(
            weights_bytes=0,
            kv_cache_bytes=0,
            compute_bytes=0,
            overhead_bytes=48 * MIB,
            provenance=Provenance.COMPUTED,
        )
