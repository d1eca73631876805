"""What the adapters say: footprints against measured numbers, launches without secrets, settings checked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.checking import RESERVED, checked_settings
from adapters.contract import Endpoint, HostFacts, LaunchRequest, ModelFacts, Runtime
from adapters.registry import adapter, adapters
from core.errors import Failure
from core.footprint import Provenance
from core.ids import DeviceId, ReplicaId
from core.units import MIB

# The header of SmolLM2-135M-Instruct, Q4_1, as `core.formats.gguf` reads it.
SMOLLM2 = ModelFacts(
    format="gguf",
    size_bytes=98362432,
    architecture="llama",
    quantization="Q4_1",
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
    tensor_bytes=96576768,
)
LINUX = HostFacts(
    system="linux",
    machine="x86_64",
    cpu_count=2,
    memory_bytes=2**34,
    devices=(),
    executables={name: f"/usr/bin/{name}" for name in ("llama-server", "ollama", "text-generation-launcher")},
)

by_name = pytest.mark.parametrize("one", adapters(), ids=lambda one: one.name)
by_process = pytest.mark.parametrize(
    "one", [one for one in adapters() if Runtime.PROCESS in one.runtimes], ids=lambda one: one.name
)
by_own_program = pytest.mark.parametrize("one", [adapter("llamacpp"), adapter("fake")], ids=lambda one: one.name)


def request(name: str, settings=None) -> LaunchRequest:
    return LaunchRequest(
        replica_id=ReplicaId("rep_1"),
        engine_version="1",
        python="/engines/bin/python",
        model_path="/store/model.gguf",
        served_name="smol",
        settings=settings or {},
        devices=(DeviceId("cpu"),),
        host="127.0.0.1",
        port=20001,
        api_key="very-secret",
        work_dir="/run/replica",
    )


# Footprints


@pytest.mark.parametrize(
    ("settings", "measured_mib"),
    [
        ({}, 523),
        ({"slots": 4, "context": 2048}, 523),
        ({"embeddings": False}, 343),
        ({"slots": 1, "context": 512, "embeddings": False}, 169),
    ],
    ids=["defaults", "4 slots", "chat only", "small"],
)
def test_llamacpp_s_footprint_covers_what_was_measured_and_little_more(settings, measured_mib):
    total = adapter("llamacpp").footprint(SMOLLM2, settings).total_bytes
    assert measured_mib * MIB <= total <= measured_mib * MIB * 1.1


def test_llamacpp_s_parts_are_those_of_its_own_log_lines():
    found = adapter("llamacpp").footprint(SMOLLM2, {"embeddings": False})
    assert found.weights_bytes == 96576768
    assert found.kv_cache_bytes == 180 * MIB
    assert found.compute_bytes == pytest.approx((18.64 + 0.38) * MIB, rel=0.01)
    assert found.provenance is Provenance.COMPUTED


@pytest.mark.parametrize("name", ["layers", "kv_heads", "key_length", "value_length", "embedding_length", "vocabulary"])
def test_a_header_that_leaves_out_a_size_gives_an_unknown_footprint(name):
    known = {one: getattr(SMOLLM2, one) for one in SMOLLM2.__dataclass_fields__}
    found = adapter("llamacpp").footprint(ModelFacts(**{**known, name: None}), {})
    assert found.total_bytes is None


def test_the_prompt_cache_counts():
    base = adapter("llamacpp").footprint(SMOLLM2, {}).total_bytes
    assert adapter("llamacpp").footprint(SMOLLM2, {"cache_ram_mib": 256}).total_bytes == base + 256 * MIB


@given(st.integers(256, 8192), st.integers(1, 8), st.booleans())
def test_more_context_or_slots_never_need_less(context, slots, embeddings):
    def total(**more):
        settings = {"context": context, "slots": slots, "embeddings": embeddings, **more}
        return adapter("llamacpp").footprint(SMOLLM2, settings).total_bytes

    assert total() <= total(context=context + 256)
    assert total() < total(slots=slots + 1)


def test_the_fake_s_footprint_is_what_it_was_told():
    found = adapter("fake").footprint(ModelFacts(format="", size_bytes=0), {"memory_bytes": 100 * MIB})
    assert 100 * MIB < found.total_bytes < 140 * MIB


# Launches


@by_own_program
def test_the_key_stands_in_a_file_and_nowhere_else(one):
    launch = one.launch(request(one.name))
    assert launch.argv[0] == "/engines/bin/python"
    assert all("very-secret" not in word for word in (*launch.argv, *launch.env.values()))
    ((path, text),) = launch.files.items()
    assert launch.argv[-1] == f"/run/replica/{path}"
    assert json.loads(text)["api_key"] == "very-secret"


@by_own_program
def test_the_launch_carries_every_setting_filled_in(one):
    (text,) = one.launch(request(one.name)).files.values()
    assert {spec.name for spec in one.setting_specs} <= set(json.loads(text))


@by_name
def test_metrics_are_ours_and_health_has_deadlines(one):
    assert all(name.startswith("slice_engine_") for name in one.metrics)
    assert 0 < one.health.probe_timeout_s <= one.health.start_timeout_s
    assert one.endpoints({}) <= set(one.dialect.paths)


def test_embeddings_can_be_switched_off():
    assert Endpoint.EMBEDDINGS in adapter("llamacpp").endpoints({})
    assert Endpoint.EMBEDDINGS not in adapter("llamacpp").endpoints({"embeddings": False})


@by_process
def test_linux_is_usable_and_another_system_is_not_with_a_reason(one):
    assert one.fingerprint(LINUX).is_usable
    other = one.fingerprint(HostFacts(system="darwin", machine="arm64", cpu_count=8, memory_bytes=1, devices=()))
    assert not other.is_usable
    assert "darwin" in other.reason


@by_name
def test_an_install_plan_pins_exact_versions(one):
    assert all("==" in wanted for wanted in one.install_plan(one.default_version).requirements)


# The registry and the check of settings


def test_an_unknown_engine_is_refused_with_the_closest_name():
    with pytest.raises(Failure) as caught:
        adapter("llamacp")
    assert caught.value.code == "engine.unknown"
    assert "Did you mean 'llamacpp'?" in caught.value.message


@by_name
def test_defaults_pass_their_own_check(one):
    defaults = checked_settings(one, {})
    assert checked_settings(one, defaults) == defaults


def test_given_settings_win_over_defaults():
    assert checked_settings(adapter("llamacpp"), {"slots": 3})["slots"] == 3


@pytest.mark.parametrize(
    ("given_settings", "code", "words"),
    [
        ({"slot": 1}, "engine.setting_invalid", "Did you mean 'slots'?"),
        ({"colour": 1}, "engine.setting_invalid", "has no setting 'colour'"),
        ({"slots": 0}, "engine.setting_invalid", "at least 1"),
        ({"slots": 65}, "engine.setting_invalid", "at most 64"),
        ({"slots": "2"}, "engine.setting_invalid", "a whole number"),
        ({"slots": True}, "engine.setting_invalid", "a whole number"),
        ({"slots": None}, "engine.setting_invalid", "a whole number"),
        ({"slots": 2.0}, "engine.setting_invalid", "a whole number"),
        ({"embeddings": 1}, "engine.setting_invalid", "true or false"),
        ({"api-key": "x"}, "engine.setting_reserved", "Slice's own"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(given_settings, code, words):
    with pytest.raises(Failure) as caught:
        checked_settings(adapter("llamacpp"), given_settings)
    assert caught.value.code == code
    assert words in caught.value.message
    assert caught.value.param == next(iter(given_settings))


@pytest.mark.parametrize("name", sorted(RESERVED))
@by_name
def test_reserved_settings_are_nobody_s(one, name):
    assert name not in {spec.name for spec in one.setting_specs}
    with pytest.raises(Failure) as caught:
        checked_settings(one, {name: "x"})
    assert caught.value.code == "engine.setting_reserved"


def test_a_whole_number_passes_where_a_fraction_may_stand():
    assert checked_settings(adapter("fake"), {"token_delay_ms": 5})["token_delay_ms"] == 5.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(Failure):
        checked_settings(adapter("fake"), {"token_delay_ms": value})


def test_the_model_s_own_context_lowers_the_default_and_refuses_more():
    small = ModelFacts(format="gguf", size_bytes=1, context_length=2048)
    assert checked_settings(adapter("llamacpp"), {}, small)["context"] == 2048
    assert checked_settings(adapter("llamacpp"), {}, SMOLLM2)["context"] == 4096
    with pytest.raises(Failure) as caught:
        checked_settings(adapter("llamacpp"), {"context": 4096}, small)
    assert "the model's own limit" in caught.value.message
