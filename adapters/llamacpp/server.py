"""Describes llama.cpp as the program `llama-server` that somebody built or installed on the node.

In and out as in `adapters.llamacpp.adapter`, whose settings, dialect and memory it shares; only how it is found and
started differs. Its flags are those of common/arg.cpp of llama.cpp, build 11549.
"""

from pathlib import PurePosixPath

from adapters.contract import (
    Binary,
    Capability,
    Endpoint,
    Fingerprint,
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
from adapters.llamacpp.adapter import SPECS, LlamaCpp
from core.devices import DeviceKind
from core.footprint import Footprint

_EXECUTABLE = "llama-server"
_KEY_FILE = "api_key"
_SPARE_HTTP_THREADS = 32
"""As in `program/serve.py`: a kept-alive connection holds one."""
_SPECS = tuple(spec for spec in SPECS if spec.name != "embeddings")
_DEFAULTS = {spec.name: spec.default for spec in _SPECS}


class LlamaServer(LlamaCpp):
    """The adapter of a `llama-server` program."""

    @property
    def name(self) -> str:
        """The engine's name."""
        return "llama-server"

    @property
    def default_version(self) -> str:
        """The build whose flags this adapter was written against; a node runs the one that it has."""
        return "11865"

    @property
    def versions(self) -> tuple[str, ...]:
        """Builds that this release knows."""
        return (self.default_version,)

    @property
    def floor(self) -> tuple[str, str]:
        """Below this build its parsers can be made to write outside their memory."""
        return ("11865", "CVE-2026-118375, CVE-2026-21869, CVE-2026-34159")

    @property
    def runtimes(self) -> frozenset[Runtime]:
        """A process."""
        return frozenset({Runtime.PROCESS})

    @property
    def setting_specs(self) -> tuple[SettingSpec, ...]:
        """The launcher's, without embeddings: the program serves either them or chat."""
        return _SPECS

    def fingerprint(self, host: HostFacts) -> Fingerprint:
        """Return whether the program is there; what it was built for is not known, so it gets the CPU only."""
        if host.system != "linux":
            return Fingerprint(is_usable=False, reason=f"Slice runs llama-server on Linux only, not on {host.system}")
        if _EXECUTABLE not in host.executables:
            return Fingerprint(
                is_usable=False,
                reason="there is no program 'llama-server' on this node; the engine llamacpp needs none",
            )
        return Fingerprint(is_usable=True, device_kinds=frozenset({DeviceKind.CPU}))

    def install_plan(self, version: str) -> InstallPlan:
        """Return that it is a program of its own; `--version` prints `version: BUILD (COMMIT)`."""
        return InstallPlan(
            requirements=(), binary=Binary(executable=_EXECUTABLE, version_pattern=r"(?m)^version: (\d+) ")
        )

    def launch(self, request: LaunchRequest) -> Launch:
        """Return the program with flags that mean what `program/serve.py` sets; the key stands in a file."""
        settings = {**_DEFAULTS, **request.settings}
        context, slots = _whole(settings["context"]), _whole(settings["slots"])
        flags = {
            "--model": request.model_path,
            "--alias": request.served_name,
            "--host": request.host,
            "--port": str(request.port),
            "--ctx-size": str(context * slots),  # llama.cpp counts all slots together
            "--parallel": str(slots),
            "--batch-size": str(settings["batch"]),
            "--ubatch-size": str(settings["batch"]),
            "--n-gpu-layers": str(settings["gpu_layers"]),
            "--cache-ram": str(settings["cache_ram_mib"]),
            "--ctx-checkpoints": "3",
            "--threads-http": str(slots + _SPARE_HTTP_THREADS),
            "--load-mode": "none",  # read, not mapped: mapped weights count as free memory in the kernel's books
            "--fit": "off",
        }
        if request.api_key:
            flags["--api-key-file"] = str(PurePosixPath(request.work_dir) / _KEY_FILE)
        if _whole(settings["threads"]) > 0:
            flags["--threads"] = str(settings["threads"])
        switches = ("--no-kv-unified", "--no-cache-idle-slots", "--no-context-shift", "--jinja", "--metrics")
        argv = [request.executable, *(word for flag in flags.items() for word in flag), *switches]
        return Launch(
            argv=(*argv, "--no-slots", "--no-ui", "--offline"),
            files={_KEY_FILE: request.api_key + "\n"} if request.api_key else {},
        )

    def endpoints(self, settings: Settings) -> frozenset[Endpoint]:
        """Return chat and completions."""
        return frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return llama.cpp's, without embeddings."""
        return super().capabilities({**settings, "embeddings": False})

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return llama.cpp's, without the rows that embeddings would need."""
        return super().footprint(facts, {**settings, "embeddings": False})


def _whole(value: JsonValue) -> int:
    return value if isinstance(value, int) else 0
