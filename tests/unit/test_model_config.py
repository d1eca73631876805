"""config.json and the index of shards: the numbers of well-known families, and clear words for hostile files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.facts import facts_from_json
from core.errors import Failure
from core.formats import model_config
from core.formats.safetensors import SafetensorsHeader

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
GEMMA3 = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "vision_config": {"hidden_size": 1152, "num_attention_heads": 16},
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 34,
        "intermediate_size": 10240,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
}
QWEN_MOE = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "head_dim": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_hidden_layers": 48,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "num_experts": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "quantization_config": {"quant_method": "gptq", "bits": 4},
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_hidden_layers": 61,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "quantization_config": {"quant_method": "fp8"},
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "n_inner": None}
FALCON = {"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "multi_query": True}


def read(config: object) -> model_config.ModelConfig:
    return model_config.read_config(json.dumps(config).encode())


def fault(call, *arguments: object) -> str:
    with pytest.raises(Failure) as caught:
        call(*arguments)
    assert caught.value.code == "format.safetensors_invalid"
    return caught.value.message


def header(*names: str, elements: dict[str, int] | None = None, tensor_bytes: int = 8) -> SafetensorsHeader:
    return SafetensorsHeader(
        size_bytes=100, names=frozenset(names), elements=elements or {"BF16": 4}, tensor_bytes=tensor_bytes
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(LLAMA, ("llama", 32, 32, 8, 128, 128, 4096, 14336, 128256, 131072, "BF16"), id="llama"),
        pytest.param(GEMMA3, ("gemma3_text", 34, 8, 4, 256, 256, 2560, 10240, 262208, 131072, ""), id="gemma3"),
        pytest.param(QWEN_MOE, ("qwen3_moe", 48, 32, 4, 128, 128, 2048, 6144, 151936, 40960, "gptq-4bit"), id="qwen"),
        pytest.param(DEEPSEEK, ("deepseek_v3", 61, 128, 1, 576, 512, 7168, None, None, None, "fp8"), id="deepseek"),
        pytest.param(GPT2, ("gpt2", 12, 12, 12, 64, 64, 768, None, None, 1024, ""), id="gpt2"),
        pytest.param(FALCON, ("falcon", None, 71, 1, 64, 64, 4544, None, None, None, ""), id="falcon"),
        pytest.param({}, ("", None, None, None, None, None, None, None, None, None, ""), id="nothing"),
        pytest.param({"architectures": ["Odd"]}, ("Odd", *[None] * 9, ""), id="only-a-class"),
    ],
)
def test_a_family_is_understood(config, expected):
    found = read(config)
    assert (
        found.architecture,
        found.layers,
        found.heads,
        found.kv_heads,
        found.key_length,
        found.value_length,
        found.embedding_length,
        found.feed_forward_length,
        found.vocabulary,
        found.context_length,
        found.quantization,
    ) == expected


def test_where_layers_differ_the_largest_counts():
    assert read({"intermediate_size": [16384, 8192, None], "num_kv_heads": [3, 5]}).feed_forward_length == 16384


@pytest.mark.parametrize(
    ("config", "words"),
    [
        pytest.param({"hidden_size": "4096"}, "its hidden_size is '4096'", id="text"),
        pytest.param({"hidden_size": -1}, "its hidden_size is '-1'", id="negative"),
        pytest.param({"vocab_size": True}, "its vocab_size is 'True'", id="bool"),
        pytest.param({"num_hidden_layers": 1e300}, "its num_hidden_layers is", id="float"),
        pytest.param({"num_hidden_layers": {"a": 1}}, "its num_hidden_layers is", id="object"),
        pytest.param([1], "it is not a JSON object", id="list"),
    ],
)
def test_a_hostile_config_is_named(config, words):
    assert words in fault(model_config.read_config, json.dumps(config).encode())


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"{", b'{"a":' * 100_000, b'{"a":1,"a":1}', b'{"x": "' + b" " * 5_000_000 + b'"}']
)
def test_what_is_no_config_is_named(raw):
    assert "its config.json is unusable" in fault(model_config.read_config, raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*LLAMA, *DEEPSEEK, *GPT2, "text_config", "multi_query"]), JSON))
def test_any_config_gives_facts_the_controller_takes_or_a_failure(config):
    try:
        found = read(config)
    except Failure as failure:
        assert failure.code == "format.safetensors_invalid"  # noqa: PT017
        return
    facts = facts_from_json(model_config.facts_json(found, [header("a")], size_bytes=100))
    assert (facts.format, facts.parameters, facts.tensor_bytes) == ("safetensors", 4, 8)


def test_the_facts_sum_up_the_shards():
    shards = [header("a", elements={"BF16": 100}, tensor_bytes=200), header("b", elements={"F32": 7}, tensor_bytes=28)]
    facts = facts_from_json(model_config.facts_json(read(LLAMA), shards, size_bytes=1000))
    assert (facts.parameters, facts.tensor_bytes, facts.size_bytes) == (107, 228, 1000)
    assert (facts.quantization, facts.architecture, facts.kv_heads) == ("BF16", "llama", 8)


def test_a_quantisers_name_wins_over_the_type_of_its_packed_codes():
    facts = facts_from_json(model_config.facts_json(read(QWEN_MOE), [header("a", elements={"I32": 9})], size_bytes=1))
    assert facts.quantization == "gptq-4bit"


def test_the_tokenizers_bound_serves_where_the_config_has_none():
    tokenizer = model_config.read_tokenizer_config(b'{"model_max_length": 2048}')
    context = model_config.tokenizer_context(tokenizer)
    assert (
        facts_from_json(model_config.facts_json(read({}), [], size_bytes=1, context_length=context)).context_length
        == 2048
    )
    assert model_config.tokenizer_context({"model_max_length": 10**30}) is None
    assert model_config.tokenizer_context({"model_max_length": 1e30}) is None
    assert model_config.tokenizer_context({}) is None


def test_the_index_must_agree_with_the_files():
    index = model_config.read_index(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).encode())
    shards = {"1.safetensors": header("a"), "2.safetensors": header("b")}
    model_config.check_index(index, shards)
    assert "names the file '2.safetensors', which is not there" in fault(
        model_config.check_index, index, {"1.safetensors": header("a")}
    )
    assert "'2.safetensors' holds the tensor 'b', and it does not" in fault(
        model_config.check_index, index, {**shards, "2.safetensors": header("c")}
    )


def test_no_tensor_may_stand_in_two_files():
    message = fault(model_config.check_apart, {"1": header("a"), "2": header("a")})
    assert "the tensor 'a' stands both in '1' and in '2'" in message


@pytest.mark.parametrize("raw", [b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}'])
def test_an_index_without_a_map_is_named(raw):
    assert "weight_map" in fault(model_config.read_index, raw)
