"""Describes Text Generation Inference: how its launcher is started, probed and talked to.

In: host facts, model facts, settings, a launch request. Out: values. Called by the controller, the node agent and the
front door through `adapters.contract.Adapter`; starts nothing and reads no file. Small on purpose: upstream is archived
and recommends other engines; what is behind each choice stands in `design.md`.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath

from adapters.contract import (
    Binary,
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
from core.devices import CPU_DEVICE, DeviceKind
from core.footprint import UNKNOWN_FOOTPRINT, Footprint, Provenance
from core.units import GIB

_EXECUTABLE = "text-generation-launcher"
_LONGEST_SOCKET_STEM = 96
"""A unix socket's path has at most 107 bytes, and TGI appends the shard's number to ours."""

_OVERHEAD_BYTES = 2 * GIB
"""Python, PyTorch and its kernels in the shard, the router, the launcher; generous, never measured."""

_F16, _F32 = 2, 4

_SPECS = (
    SettingSpec(
        name="context",
        # The launcher's own default is at most 4096 as well.
        meaning="tokens that one request may use, prompt and answer together",
        kind=int,
        default=4096,
        minimum=128,
        maximum=1_048_576,
        capped_by="context_length",
    ),
    SettingSpec(
        name="slots",
        meaning="requests of full length for which a batch has room; shorter ones share it",
        kind=int,
        default=2,
        minimum=1,
        maximum=256,
    ),
    SettingSpec(
        name="queue",
        # The launcher's own default.
        meaning="requests that may run and wait at the same time; more are answered busy",
        kind=int,
        default=128,
        minimum=1,
        maximum=4096,
    ),
    SettingSpec(
        name="dtype",
        meaning="number format of the weights; float32 and bfloat16 are what CPUs compute with",
        kind=str,
        default="auto",
        choices=("auto", "float16", "bfloat16", "float32"),
    ),
)
_DEFAULTS = {spec.name: spec.default for spec in _SPECS}


class Tgi:
    """The adapter of TGI's launcher; also `Floored`."""

    @property
    def name(self) -> str:
        """The engine's name."""
        return "tgi"

    @property
    def default_version(self) -> str:
        """The last release; a node runs the one that it has."""
        return "3.3.7"

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that this release knows."""
        return (self.default_version,)

    @property
    def floor(self) -> tuple[str, str]:
        """Before 3.3.7 a link in a prompt made the server fetch without bounds."""
        return ("3.3.7", "CVE-2026-0599")

    @property
    def runtimes(self) -> frozenset[Runtime]:
        """A process."""
        return frozenset({Runtime.PROCESS})

    @property
    def formats(self) -> frozenset[str]:
        """Safetensors."""
        return frozenset({"safetensors"})

    @property
    def setting_specs(self) -> tuple[SettingSpec, ...]:
        """Every setting a deployment may give."""
        return _SPECS

    @property
    def health(self) -> Health:
        """`/health` needs no key; the port opens when the shard has loaded the model."""
        return Health(path="/health", start_timeout_s=900.0, stop_grace_s=15.0)

    @property
    def dialect(self) -> Dialect:
        """OpenAI's paths with some of OpenAI's values unheard; a prompt that does not fit is 422 `validation`.

        Everything that its validation refuses has that type, so the words tell (router/src/validation.rs).
        """
        return Dialect(
            paths={Endpoint.CHAT: "/v1/chat/completions", Endpoint.COMPLETIONS: "/v1/completions"},
            overflow_phrases=("`inputs` must have less than", "`inputs` tokens + `max_new_tokens` must be <="),
            renames={"max_completion_tokens": "max_tokens"},
            tells_stream_usage=True,
            refused={
                "n": (1,),
                "best_of": (1,),
                "echo": (False,),
                "suffix": ("",),
                # It becomes a repetition penalty of itself + 2: even OpenAI's default would distort an answer.
                "presence_penalty": (0,),
                "logit_bias": ({},),
                "parallel_tool_calls": (True,),
                "functions": ([],),
                "function_call": ("none", "auto"),
            },
            dropped={
                "top_p": (1,),
                "logit_bias": ({},),
                "response_format": ({"type": "text"},),
                "suffix": ("",),
                "presence_penalty": (0,),
            },
            lists=frozenset({"stop"}),
            schema_member="value",
            # Chats say the second as it is, streams of completions both, and "" before the end (router/src/lib.rs).
            finish_reasons={"eos_token": "stop", "stop_sequence": "stop", "": None},
            keeps_stop=True,
            # Any other name is taken for that of a LoRA adapter.
            fixed_model="tgi",
        )

    @property
    def metrics(self) -> Mapping[str, str]:
        """Our metric name -> TGI's."""
        return {
            "slice_engine_prompt_tokens_total": "tgi_request_input_length_sum",
            "slice_engine_generated_tokens_total": "tgi_request_generated_tokens_sum",
            "slice_engine_requests_running": "tgi_batch_current_size",
            "slice_engine_requests_waiting": "tgi_queue_size",
        }

    def fingerprint(self, host: HostFacts) -> Fingerprint:
        """Return whether the launcher is on the node's PATH."""
        if host.system != "linux":
            return Fingerprint(is_usable=False, reason=f"TGI runs on Linux only, not on {host.system}")
        if _EXECUTABLE not in host.executables:
            return Fingerprint(
                is_usable=False,
                reason=f"there is no program {_EXECUTABLE!r} on this node; upstream is archived, consider vllm instead",
            )
        gpus = {device.kind for device in host.devices if device.kind is DeviceKind.NVIDIA}
        return Fingerprint(is_usable=True, device_kinds=frozenset({DeviceKind.CPU, *gpus}))

    def install_plan(self, version: str) -> InstallPlan:
        """Return that it is a program of its own."""
        return InstallPlan(requirements=(), binary=Binary(executable=_EXECUTABLE))

    def launch(self, request: LaunchRequest) -> Launch:
        """Return the launcher's process.

        The model's files are linked below the work directory under the served name, because TGI calls a model in its
        answers what it was started with, and that would be a path of this machine. The key goes through the
        environment.
        """
        settings = {**_DEFAULTS, **request.settings}
        context, slots = settings["context"], settings["slots"]
        assert isinstance(context, int)
        assert isinstance(slots, int)
        work = PurePosixPath(request.work_dir)
        socket = str(work / "shard")
        argv = (
            request.executable,
            *("--model-id", request.served_name),
            *("--hostname", request.host),
            *("--port", str(request.port)),
            *("--num-shard", "1"),
            *("--max-total-tokens", str(context)),
            *("--max-input-tokens", str(context - 1)),
            *("--max-batch-prefill-tokens", str(context - 1)),
            *("--max-batch-total-tokens", str(context * slots)),
            *("--max-concurrent-requests", str(settings["queue"])),
            # Its default is one path for the whole machine.
            *(
                "--shard-uds-path",
                socket if len(socket) <= _LONGEST_SOCKET_STEM else f"/tmp/slice-tgi-{request.port}",  # noqa: S108
            ),
            *(() if settings["dtype"] == "auto" else ("--dtype", str(settings["dtype"]))),
            "--json-output",
        )
        env = {
            "API_KEY": request.api_key,
            "HOME": str(work / ".home"),  # a model may be called home
            "HF_HOME": str(work / ".home" / "hub"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "USAGE_STATS": "off",
        }
        if all(device == CPU_DEVICE for device in request.devices):
            env["DISABLE_CUSTOM_KERNELS"] = "true"
        links = {f"{request.served_name}/{file.path}": file.stored_at for file in request.files}
        return Launch(argv=argv, env=env, links=links)

    def endpoints(self, settings: Settings) -> frozenset[Endpoint]:
        """Return chat and completions; embeddings are another program's (TEI)."""
        return frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return its endpoints and what it does within chats; tools are a grammar, and exclude a JSON schema."""
        powers = {
            Capability.STREAM_USAGE,
            Capability.SEED,
            Capability.JSON_SCHEMA,
            Capability.TOOLS,
            Capability.LOGPROBS,
        }
        return frozenset({*(Capability(one.value) for one in self.endpoints(settings)), *powers})

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return weights, a KV cache as wide as `dtype` for all slots, and a rest; unknown without the sizes."""
        whole = {**_DEFAULTS, **settings}
        weights = facts.tensor_bytes or facts.size_bytes
        sizes = (facts.layers, facts.kv_heads, facts.key_length, facts.value_length)
        context, slots = whole["context"], whole["slots"]
        if not weights or any(size is None for size in sizes) or not isinstance(context, int):
            return UNKNOWN_FOOTPRINT
        is_wide = whole["dtype"] == "float32"
        row = (facts.layers or 0) * (facts.kv_heads or 0) * ((facts.key_length or 0) + (facts.value_length or 0))
        return Footprint(
            weights_bytes=weights * (2 if is_wide else 1),
            kv_cache_bytes=row * (_F32 if is_wide else _F16) * context * (slots if isinstance(slots, int) else 1),
            compute_bytes=0,
            overhead_bytes=_OVERHEAD_BYTES,
            provenance=Provenance.COMPUTED,
        )
