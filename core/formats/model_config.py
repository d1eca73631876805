"""Reads Hugging Face's `config.json` and the index of shards without trusting them.

In: the bytes of the files and the headers of the shards. Out: `ModelConfig`, and the JSON of
`adapters.contract.ModelFacts`. What a file does not say is None; what is no number where one must be is a `Failure`.
Called by the node agent's header reader.

Source: the `PretrainedConfig` classes of huggingface/transformers (names and aliases of the fields).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from core.errors import Failure
from core.formats.json_text import json_object
from core.formats.safetensors import MAX_TENSORS, SafetensorsHeader

MAX_CONFIG_BYTES = 4 * 1024**2
MAX_INDEX_BYTES = 32 * 1024**2  # the largest known, of 100 thousand tensors, has below 10 MB
MAX_TOKENIZER_CONFIG_BYTES = 16 * 1024**2
_MAX_NUMBER = 2**53
_PER_LAYER_MAX = 4096
_LONGEST_CONTEXT = 2**31  # tokenizers say 10^30 for "any length"

# Where models that see or hear keep the numbers of their language part.
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_query_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "model_dim")
_WIDE = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "moe_intermediate_size")
_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "model_max_length",
)
_LABELS: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a `config.json` says; lengths are per head, numbers are the largest of any layer where layers differ."""

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


def read_config(raw: bytes) -> ModelConfig:
    """Return what the `config.json` in `raw` says.

    Raises:
        Failure: `format.safetensors_invalid` when it is no JSON object or a number in it is none.
    """
    whole = json_object(raw, limit_bytes=MAX_CONFIG_BYTES, fault=_config_failure)
    found = _language_part(whole)
    heads = _number(found, _HEADS)
    hidden = _number(found, _HIDDEN)
    kv_heads, key, value = _attention(found, heads, hidden)
    return ModelConfig(
        architecture=_word(found.get("model_type")) or _first_word(whole.get("architectures")),
        quantization=_quantization(whole.get("quantization_config") or found.get("quantization_config"))
        or _LABELS.get(_word(found.get("torch_dtype") or found.get("dtype")), ""),
        layers=_number(found, _LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        key_length=key,
        value_length=value,
        embedding_length=hidden,
        feed_forward_length=_number(found, _WIDE),
        vocabulary=_number(found, ("vocab_size", "padded_vocab_size")),
        context_length=_number(found, _CONTEXT),
    )


def read_index(raw: bytes) -> Mapping[str, str]:
    """Return the shard of each tensor that the `*.safetensors.index.json` in `raw` names.

    Raises:
        Failure: `format.safetensors_invalid`.
    """

    def fault(reason: str) -> Failure:
        return _failure(f"the index of the shards is unusable: {reason}")

    shards = json_object(raw, limit_bytes=MAX_INDEX_BYTES, fault=fault).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise fault("its weight_map does not name a file for each tensor")
    if len(shards) > MAX_TENSORS:
        raise fault(f"it names {len(shards)} tensors, more than {MAX_TENSORS}")
    return shards


def check_index(index: Mapping[str, str], shards: Mapping[str, SafetensorsHeader]) -> None:
    """Check that `shards`, headers by file name, hold exactly what the index says.

    Raises:
        Failure: `format.safetensors_invalid` naming the file or the tensor.
    """
    for tensor, name in index.items():
        if name not in shards:
            raise _failure(f"the index names the file {name[:200]!r}, which is not there")
        if tensor not in shards[name].names:
            raise _failure(f"the index says that {name!r} holds the tensor {tensor[:200]!r}, and it does not")


def check_apart(shards: Mapping[str, SafetensorsHeader]) -> None:
    """Check that no tensor stands in two files.

    Raises:
        Failure: `format.safetensors_invalid` naming the tensor and both files.
    """
    owner: dict[str, str] = {}
    for name, header in shards.items():
        for tensor in header.names:
            if tensor in owner:
                raise _failure(f"the tensor {tensor!r} stands both in {owner[tensor]!r} and in {name!r}")
            owner[tensor] = name
        if len(owner) > MAX_TENSORS:
            raise _failure(f"its files hold more than {MAX_TENSORS} tensors")


def facts_json(
    config: ModelConfig, headers: Iterable[SafetensorsHeader], *, size_bytes: int, context_length: int | None = None
) -> str:
    """Return the fields of `adapters.contract.ModelFacts` as a JSON object.

    `context_length` is the tokenizer's, for configs that have none.
    """
    elements: Counter[str] = Counter()
    tensor_bytes = 0
    for header in headers:
        elements.update(header.elements)
        tensor_bytes += header.tensor_bytes
    on_disk = max(sorted(elements), key=elements.__getitem__, default="")
    return json.dumps(
        {
            "format": "safetensors",
            "size_bytes": size_bytes,
            **asdict(config),
            # What the tensors are made of is the truth, unless they are packed codes of a quantiser.
            "quantization": config.quantization if _is_quantiser(config.quantization) else on_disk,
            "context_length": config.context_length or context_length,
            "parameters": sum(elements.values()),
            "tensor_bytes": tensor_bytes,
        }
    )


def tokenizer_context(config: Mapping[str, Any]) -> int | None:
    """Return the longest text that a `tokenizer_config.json` allows, in tokens, None when it sets no bound."""
    value = config.get("model_max_length")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _LONGEST_CONTEXT:
        return None
    return value


def read_tokenizer_config(raw: bytes) -> dict[str, Any]:
    """Return the object in a `tokenizer_config.json`.

    Raises:
        Failure: `format.safetensors_invalid`.
    """

    def fault(reason: str) -> Failure:
        return _failure(f"its tokenizer_config.json is unusable: {reason}")

    return json_object(raw, limit_bytes=MAX_TOKENIZER_CONFIG_BYTES, fault=fault)


def _failure(fault: str) -> Failure:
    return Failure(
        "format.safetensors_invalid",
        f"the files are not a usable safetensors model: {fault}",
        hint="pull it again, or look where it comes from whether it is whole",
    )


def _config_failure(reason: str) -> Failure:
    return _failure(f"its config.json is unusable: {reason}")


def _language_part(whole: dict[str, Any]) -> dict[str, Any]:
    found = whole
    for _ in range(2):  # thinker_config holds a text_config in its turn
        nested = next((found[name] for name in _NESTED if isinstance(found.get(name), dict)), None)
        if nested is None:
            break
        found = {**found, **{name: value for name, value in nested.items() if value is not None}}
        for name in _NESTED:
            if name not in nested:
                found.pop(name, None)
    return found


def _attention(
    found: Mapping[str, Any], heads: int | None, hidden: int | None
) -> tuple[int | None, int | None, int | None]:
    """Return key and value heads, and the lengths of one key and one value.

    1. Latent attention (DeepSeek) keeps one compressed vector per token: llama.cpp and vLLM store it as one head.
    2. Else the head's own length, or the hidden size shared out among the heads.
    """
    rank = _number(found, ("kv_lora_rank",))
    rope = _number(found, ("qk_rope_head_dim",))
    if rank is not None and rope is not None:
        return 1, rank + rope, rank
    length = _number(found, ("head_dim", "attention_head_dim", "kv_channels"))
    if length is None and hidden is not None and heads is not None:
        length = hidden // heads or None
    kv_heads = _number(found, _KV_HEADS)
    if kv_heads is None and found.get("multi_query") is True and found.get("new_decoder_architecture") is not True:
        kv_heads = 1
    return kv_heads or heads, length, length


def _number(found: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the first of `names` that has a number above 0; the largest of a list with one for each layer."""
    for name in names:
        value = found.get(name)
        if isinstance(value, list) and 0 < len(value) <= _PER_LAYER_MAX:
            value = max((_checked(name, one) or 0 for one in value), default=0)
        if number := _checked(name, value):
            return number
    return None


def _checked(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_NUMBER:
        raise _config_failure(f"its {name} is {str(value)[:40]!r}, which is no number from 0 to 2^53")
    return value


def _word(value: Any) -> str:
    return value[:200] if isinstance(value, str) else ""


def _first_word(value: Any) -> str:
    return _word(value[0]) if isinstance(value, list) and value else ""


def _quantization(value: Any) -> str:
    """Return a label such as `gptq-4bit`, "" when the weights are plain numbers."""
    if not isinstance(value, dict):
        return ""
    method = _word(value.get("quant_method"))
    bits = value.get("bits")
    if bits is None and method == "bitsandbytes":
        bits = 4 if value.get("load_in_4bit") is True else 8
    if not method:
        return ""
    return f"{method}-{bits}bit" if isinstance(bits, int) and not isinstance(bits, bool) and 0 < bits <= 16 else method


def _is_quantiser(label: str) -> bool:
    return bool(label) and label not in _LABELS.values()
