"""What the adapters of vLLM and transformers say: command lines, versions, locks, footprints."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.version import Version

from adapters.checking import checked_settings
from adapters.contract import Capability, Endpoint, Floored, LaunchRequest, ModelFacts
from adapters.registry import adapter, adapters
from core.errors import Failure
from core.ids import DeviceId, ReplicaId
from core.units import MIB

# SmolLM2-135M-Instruct in bfloat16, as its safetensors header and config.json say.
SMOLLM2 = ModelFacts(
    format="safetensors",
    size_bytes=269060552,
    architecture="LlamaForCausalLM",
    layers=30,
    heads=9,
    kv_heads=3,
    key_length=64,
    value_length=64,
    embedding_length=576,
    feed_forward_length=1536,
    vocabulary=49152,
    context_length=8192,
    parameters=134515008,
    tensor_bytes=269030016,
)
BOTH = ("vllm", "transformers")


def request(name: str, settings=None, version: str = "") -> LaunchRequest:
    return LaunchRequest(
        replica_id=ReplicaId("rep_1"),
        engine_version=version or adapter(name).default_version,
        python="/engines/bin/python",
        model_path="/replica/model",
        served_name="smol",
        settings=settings or {},
        devices=(DeviceId("cpu"),),
        host="127.0.0.1",
        port=20001,
        api_key="very-secret",
        work_dir="/run/replica",
    )


def arguments(settings=None, version: str = "") -> list[str]:
    (text,) = adapter("vllm").launch(request("vllm", settings, version)).files.values()
    return json.loads(text)["arguments"]


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


# vLLM's command line


def test_vllm_is_told_where_to_listen_what_to_serve_and_how_much_to_take():
    words = arguments({"context": 2048, "slots": 3, "kv_cache_mib": 100, "dtype": "float16"})
    assert (after(words, "--host"), after(words, "--port")) == ("127.0.0.1", "20001")
    assert (after(words, "--model"), after(words, "--served-model-name")) == ("/replica/model", "smol")
    assert (after(words, "--max-model-len"), after(words, "--max-num-seqs")) == ("2048", "3")
    assert after(words, "--kv-cache-memory-bytes") == str(100 * MIB)
    assert after(words, "--dtype") == "float16"
    assert after(words, "--generation-config") == "vllm"


def test_vllm_s_arguments_hold_no_key_as_it_logs_them():
    assert not any("very-secret" in word for word in arguments())


@example("none")
@given(st.text(max_size=20))
def test_no_setting_puts_a_flag_of_its_own_among_vllm_s_arguments(value):
    for name in ("tool_parser", "dtype"):
        try:
            settings = checked_settings(adapter("vllm"), {name: value})
        except Failure:
            continue
        flag, words = "--dtype" if name == "dtype" else "--tool-call-parser", arguments(settings)
        assert (after(words, flag) if flag in words else "none") == value


@pytest.mark.parametrize("name", ["trust-remote-code", "trust_remote_code", "load_format", "middleware", "extra_args"])
@pytest.mark.parametrize("engine", BOTH)
def test_what_would_run_a_model_s_code_is_no_setting(engine, name):
    with pytest.raises(Failure) as caught:
        checked_settings(adapter(engine), {name: True})
    assert caught.value.code == "engine.setting_reserved"
    assert not any("trust" in word for word in arguments())


def test_tools_are_a_power_only_with_a_parser():
    vllm = adapter("vllm")
    assert Capability.TOOLS in vllm.capabilities({})
    assert Capability.TOOLS not in vllm.capabilities({"tool_parser": "none"})
    assert "--tool-call-parser" not in arguments({"tool_parser": "none"})


def test_a_flag_that_a_release_lacks_is_not_given_to_it():
    assert "--tool-strict-level" in arguments(version="0.32.0")
    assert "--tool-strict-level" not in arguments(version="0.30.0")


def test_prefix_caching_can_be_switched_off():
    assert "--no-enable-prefix-caching" in arguments({"prefix_caching": False})


def test_a_batch_is_never_smaller_than_the_slots():
    assert after(arguments({"batch": 1024, "slots": 1024}), "--max-num-batched-tokens") == "1024"


@pytest.mark.parametrize("engine", BOTH)
def test_an_engine_never_looks_for_models_outside(engine):
    env = adapter(engine).launch(request(engine)).env
    assert (env["HF_HUB_OFFLINE"], env["TRANSFORMERS_OFFLINE"], env["HOME"]) == ("1", "1", "/run/replica")


def test_threads_reach_vllm_by_its_environment_and_none_by_default():
    assert adapter("vllm").launch(request("vllm", {"threads": 3})).env["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in adapter("vllm").launch(request("vllm")).env


# Versions, floors and locks

LOCKS = [
    pytest.param(one, version, id=f"{one.name} {version}")
    for one in adapters()
    for version in one.versions
    if one.install_plan(version).lock
]


def test_vllm_s_versions_are_all_at_its_floor_or_above():
    vllm = adapter("vllm")
    assert isinstance(vllm, Floored)
    floor, advisories = vllm.floor
    assert "CVE" in advisories
    assert all(Version(version) >= Version(floor) for version in vllm.versions)
    assert vllm.versions[0] == vllm.default_version


@pytest.mark.parametrize(("one", "version"), LOCKS)
def test_a_lock_pins_what_the_plan_asks_for_and_has_a_hash_for_all_of_it(one, version):
    plan = one.install_plan(version)
    text = re.sub(r"\s*\\\n\s*", " ", Path(plan.lock).read_text())
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[^ ]+( --hash=sha256:[0-9a-f]{64})+", line) for line in lines)
    pinned = {line.split(" ")[0] for line in lines}
    assert set(plan.requirements) <= pinned


@pytest.mark.parametrize(("one", "version"), LOCKS)
def test_a_lock_names_no_place_on_the_network(one, version):
    assert "://" not in Path(one.install_plan(version).lock).read_text()


def test_the_default_versions_of_the_python_engines_are_locked():
    for name in ("llamacpp", *BOTH):
        assert adapter(name).install_plan(adapter(name).default_version).lock


# Footprints: the measured numbers are those of each `design.md`

CUDA_MIB = 958 - 604
"""What transformers' larger build takes beyond the one that was measured in full, for the same model."""


@pytest.mark.parametrize(
    ("engine", "settings", "measured_mib"),
    [
        ("vllm", {}, 3220),
        ("vllm", {"kv_cache_mib": 256, "slots": 4, "context": 2048}, 2378),
        ("vllm", {"dtype": "float32", "kv_cache_mib": 512, "slots": 4}, 2931),
        ("transformers", {}, 778 + CUDA_MIB),
        ("transformers", {"context": 2048, "slots": 2}, 724 + CUDA_MIB),
        ("transformers", {"context": 2048, "dtype": "float32"}, 1020 + CUDA_MIB),
    ],
)
def test_a_footprint_covers_what_was_measured_and_little_more(engine, settings, measured_mib):
    total = adapter(engine).footprint(SMOLLM2, settings).total_bytes
    assert measured_mib * MIB <= total <= measured_mib * MIB * 1.2


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("name", ["vocabulary", "embedding_length"])
def test_a_header_that_leaves_out_a_size_gives_an_unknown_footprint(engine, name):
    assert adapter(engine).footprint(dataclasses.replace(SMOLLM2, **{name: None}), {}).total_bytes is None


def test_vllm_s_keys_and_values_take_what_they_were_given():
    assert adapter("vllm").footprint(SMOLLM2, {"kv_cache_mib": 300}).kv_cache_bytes == 300 * MIB


@given(st.integers(256, 8192), st.integers(1, 8))
def test_more_context_or_slots_never_need_less_of_transformers(context, slots):
    def total(**more):
        return adapter("transformers").footprint(SMOLLM2, {"context": context, "slots": slots, **more}).total_bytes

    assert total() < total(context=context + 256)
    assert total() < total(slots=slots + 1)


@pytest.mark.parametrize("engine", BOTH)
def test_wide_numbers_need_more(engine):
    narrow, wide = (adapter(engine).footprint(SMOLLM2, {"dtype": dtype}) for dtype in ("bfloat16", "float32"))
    assert wide.weights_bytes == 2 * narrow.weights_bytes


# Endpoints and the choice of an engine


def test_endpoints_are_those_that_were_seen_to_work():
    assert adapter("vllm").endpoints({}) == {Endpoint.CHAT, Endpoint.COMPLETIONS}
    assert Endpoint.EMBEDDINGS in adapter("transformers").endpoints({})
    assert Endpoint.EMBEDDINGS not in adapter("transformers").endpoints({"embeddings": False})


@pytest.mark.parametrize(("model_format", "first"), [("gguf", "llamacpp"), ("safetensors", "vllm")])
def test_the_first_engine_for_a_format_is_the_default_one(model_format, first):
    assert next(one.name for one in adapters() if model_format in one.formats) == first
