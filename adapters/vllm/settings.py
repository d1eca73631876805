"""The settings of a vLLM deployment, and the words of its command line.

In: settings, names and paths of one launch. Out: `SettingSpec`s; the arguments for vLLM's own parser. Called by
`adapters.vllm.adapter`. Pure.
"""

import json

from adapters.contract import JsonValue, LaunchRequest, Settings, SettingSpec
from core.units import MIB

NO_PARSER = "none"
TOOL_PARSERS = (
    NO_PARSER,
    "deepseek_v3",
    "gemma4",
    "glm47",
    "granite4",
    "hermes",
    "kimi_k2",
    "llama3_json",
    "llama4_pythonic",
    "mistral",
    "openai",
    "phi4_mini_json",
    "pythonic",
    "qwen3_coder",
)
_STRICT_TOOLS_FROM = (0, 31)

SPECS = (
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
        # A batch costs little beside its keys and values; more than eight gain nothing on the CPUs tried.
        meaning="requests that run at the same time; the others wait",
        kind=int,
        default=8,
        minimum=1,
        maximum=1024,
    ),
    SettingSpec(
        name="kv_cache_mib",
        # Shared by all running requests. Takes the place of vLLM's share of the whole device, which no footprint fits.
        meaning="MiB for keys and values of all requests together; must hold one whole context",
        kind=int,
        default=1024,
        minimum=16,
        maximum=4_194_304,
    ),
    SettingSpec(
        name="batch",
        meaning="prompt tokens computed at once; longer prompts are computed in pieces",
        kind=int,
        default=2048,
        minimum=1024,
        maximum=65_536,
    ),
    SettingSpec(
        name="dtype",
        meaning="number format of weights, keys and values",
        kind=str,
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
    ),
    SettingSpec(
        name="threads",
        meaning="CPU threads that compute; 0 means vLLM's choice",
        kind=int,
        default=0,
        minimum=0,
        maximum=512,
    ),
    SettingSpec(
        name="prefix_caching",
        meaning="keep keys and values of finished requests for those that begin alike",
        kind=bool,
        default=True,
    ),
    SettingSpec(
        name="tool_parser",
        # The wording of hermes is what most templates that know tools ask for.
        meaning="how the model writes its tool calls; none switches tools off",
        kind=str,
        default="hermes",
        choices=TOOL_PARSERS,
    ),
)
DEFAULTS = {spec.name: spec.default for spec in SPECS}


def whole(settings: Settings) -> dict[str, JsonValue]:
    """Return `settings` with the defaults of those left out."""
    return {**DEFAULTS, **settings}


def number(settings: Settings, name: str) -> int:
    """Return a setting that is a whole number."""
    value = settings[name]
    return value if isinstance(value, int) else 0


def has_tools(settings: Settings) -> bool:
    """Return whether tool calls are parsed."""
    return whole(settings)["tool_parser"] != NO_PARSER


def arguments(request: LaunchRequest) -> list[str]:
    """Return the words for vLLM's parser; the key is not among them, as vLLM logs them all."""
    settings = whole(request.settings)
    words = [
        *("--model", request.model_path),
        *("--served-model-name", request.served_name),
        *("--host", request.host),
        *("--port", str(request.port)),
        # The model's own generation_config.json would change what a request without a temperature means.
        *("--generation-config", "vllm"),
        *("--load-format", "safetensors"),
        *("--dtype", str(settings["dtype"])),
        "--enforce-eager",  # compiling takes minutes, and a C++ compiler that a node need not have
        *("--max-model-len", str(settings["context"])),
        *("--max-num-seqs", str(settings["slots"])),
        *("--max-num-batched-tokens", str(max(number(settings, "batch"), number(settings, "slots")))),
        *("--kv-cache-memory-bytes", str(number(settings, "kv_cache_mib") * MIB)),
        "--enable-prefix-caching" if settings["prefix_caching"] else "--no-enable-prefix-caching",
        # Small models fill an answer with blanks as long as the grammar lets them.
        *("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})),
        "--enable-prompt-tokens-details",
        "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
    ]
    if settings["tool_parser"] != NO_PARSER:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", str(settings["tool_parser"])]
        if _numbers(request.engine_version) >= _STRICT_TOOLS_FROM:
            # Arguments follow the tool's own schema; without it a small model writes any JSON value.
            words += ["--tool-strict-level", "parameter"]
    return words


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())
