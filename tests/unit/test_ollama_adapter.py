"""What the Ollama adapter says: launches, provisioning, where an adopted one may be, what a running one tells."""

import dataclasses
import json
import re

import pytest

from adapters.checking import checked_settings
from adapters.contract import (
    Api,
    Capability,
    Endpoint,
    External,
    Floored,
    HostFacts,
    LaunchRequest,
    ModelFacts,
    ModelFile,
    Provisioned,
    Runtime,
)
from adapters.ollama.adoption import adopted
from adapters.registry import adapter
from core.devices import DeviceKind, DeviceReading
from core.errors import Failure
from core.footprint import Provenance
from core.ids import DeviceId, ReplicaId, Sha256
from core.units import MIB
from tests.unit.test_adapters import LINUX, SMOLLM2

DIGEST = "a" * 64


def request(settings: dict | None = None, devices: tuple[str, ...] = ("cpu",)) -> LaunchRequest:
    file = ModelFile(path="q4/smol.gguf", sha256=Sha256(DIGEST), size_bytes=7, stored_at="/store/aa")
    return LaunchRequest(
        replica_id=ReplicaId("rep_1"),
        engine_version="0.33.0",
        python="/nowhere/python",
        executable="/usr/bin/ollama",
        model_path="/store/aa",
        files=(file,),
        served_name="smol",
        settings=settings or {},
        devices=tuple(DeviceId(one) for one in devices),
        host="127.0.0.1",
        port=20001,
        api_key="very-secret",
        work_dir="/run/replica/w",
    )


# Launches


def test_the_model_becomes_a_blob_of_its_own_store_by_a_link():
    launch = adapter("ollama").launch(request())
    assert launch.argv == ("/usr/bin/ollama", "serve")
    assert launch.links == {f"models/blobs/sha256-{DIGEST}": "/store/aa"}
    assert launch.env["OLLAMA_MODELS"] == "/run/replica/w/models"
    assert launch.env["HOME"].startswith("/run/replica/w/")


def test_it_listens_on_loopback_and_never_prunes_reports_or_unloads():
    env = adapter("ollama").launch(request()).env
    assert env["OLLAMA_HOST"] == "127.0.0.1:20001"
    assert (env["OLLAMA_NOPRUNE"], env["OLLAMA_NO_CLOUD"], env["OLLAMA_KEEP_ALIVE"]) == ("1", "1", "-1")
    assert "very-secret" not in str(adapter("ollama").launch(request()))


@pytest.mark.parametrize(("devices", "library"), [(("cpu",), "cpu"), (("GPU-1",), None)], ids=["cpu", "gpu"])
def test_only_a_replica_without_a_gpu_is_told_to_compute_on_the_cpu(devices, library):
    assert adapter("ollama").launch(request(devices=devices)).env.get("OLLAMA_LLM_LIBRARY") == library


def test_settings_reach_its_environment():
    env = adapter("ollama").launch(request({"context": 2048, "slots": 3, "cache_type": "q8_0"})).env
    assert (env["OLLAMA_CONTEXT_LENGTH"], env["OLLAMA_NUM_PARALLEL"], env["OLLAMA_KV_CACHE_TYPE"]) == (
        "2048",
        "3",
        "q8_0",
    )


def test_the_default_context_is_one_that_ollama_never_shifts():
    assert checked_settings(adapter("ollama"), {}, SMOLLM2)["context"] == 8192


# Provisioning


def test_provisioning_checks_the_blob_names_the_model_and_loads_it():
    steps = adapter("ollama").provision(request({"threads": 4}))
    assert [(one.method, one.path) for one in steps] == [
        ("HEAD", f"/api/blobs/sha256:{DIGEST}"),
        ("POST", "/api/create"),
        ("POST", "/api/generate"),
    ]
    create, load = steps[1].body, steps[2].body
    assert create["files"] == {"smol.gguf": f"sha256:{DIGEST}"}
    assert create["parameters"] == {"num_predict": 8192, "num_thread": 4}
    assert load == {"model": "smol", "keep_alive": -1, "stream": False}
    assert not any(step.method == "DELETE" or "pull" in step.path for step in steps)


def test_an_embedding_model_is_loaded_by_an_empty_embedding():
    last = adapter("ollama").provision(request({"task": "embeddings"}))[-1]
    assert (last.path, last.body["input"]) == ("/api/embed", [])


# What it can do


def test_its_powers_are_those_of_the_contract():
    one = adapter("ollama")
    assert isinstance(one, Provisioned)
    assert isinstance(one, External)
    assert isinstance(one, Floored)
    assert one.runtimes == {Runtime.PROCESS, Runtime.EXTERNAL}
    assert one.floor[0] == "0.17.1"


def test_embeddings_are_declared_only_where_the_model_is_for_them():
    one = adapter("ollama")
    assert one.endpoints({}) == {Endpoint.CHAT, Endpoint.COMPLETIONS}
    assert one.capabilities({"task": "embeddings"}) == {Capability.EMBEDDINGS}
    assert Capability.TOOLS in one.capabilities({})


def test_the_door_speaks_its_own_api():
    dialect = adapter("ollama").dialect
    assert dialect.api is Api.OLLAMA
    assert all(path.startswith("/api/") for path in dialect.paths.values())


def test_without_the_program_it_is_unusable_and_says_what_to_do():
    host = HostFacts(system="linux", machine="x86_64", cpu_count=2, memory_bytes=1, devices=())
    found = adapter("ollama").fingerprint(host)
    assert not found.is_usable
    assert "install Ollama" in found.reason
    assert adapter("ollama").fingerprint(LINUX).is_usable


def test_a_gpu_is_not_offered_before_one_was_measured():
    gpu = DeviceReading(
        device_id=DeviceId("GPU-1"), kind=DeviceKind.NVIDIA, name="a GPU", total_bytes=2**34, free_bytes=2**34
    )
    host = dataclasses.replace(LINUX, devices=(gpu,))
    assert adapter("ollama").fingerprint(host).device_kinds == {DeviceKind.CPU}


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("ollama version is 0.33.0\n", "0.33.0"),
        ("ollama version is 0.21.4\nWarning: client version is 0.33.0\n", "0.33.0"),
        ("Warning: could not connect to a running Ollama instance\nWarning: client version is 0.33.0\n", "0.33.0"),
    ],
    ids=["the same", "another server runs", "no server runs"],
)
def test_its_own_version_is_read_whatever_server_runs(printed, version):
    binary = adapter("ollama").install_plan("0.33.0").binary
    assert re.search(binary.version_pattern, printed)[1] == version


def test_the_footprint_covers_weights_and_cache_and_is_unknown_without_sizes():
    one = adapter("ollama")
    found = one.footprint(SMOLLM2, {"context": 4096, "slots": 2})
    assert found.weights_bytes == 96576768
    assert found.kv_cache_bytes == 180 * MIB
    assert found.compute_bytes >= 512 * SMOLLM2.vocabulary * 4
    assert found.provenance is Provenance.COMPUTED
    assert one.footprint(SMOLLM2, {"cache_type": "q8_0"}).total_bytes < one.footprint(SMOLLM2, {}).total_bytes
    assert one.footprint(ModelFacts(format="gguf", size_bytes=7), {}).total_bytes is None


# Adoption


@pytest.mark.parametrize(
    ("address", "base_url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("localhost", "http://localhost:11434"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_an_adopted_ollama_is_on_the_node_s_loopback(address, base_url):
    remote = adapter("ollama").remote({"address": address, "remote_model": "llama3.2:3b"})
    assert (remote.base_url, remote.model, remote.is_local) == (base_url, "llama3.2:3b", True)


@pytest.mark.parametrize("address", ["10.0.0.7:11434", "https://ollama.example", "127.0.0.1:70000", "127.0.0.1@evil"])
def test_an_ollama_elsewhere_is_refused_with_what_to_do(address):
    with pytest.raises(Failure) as caught:
        adapter("ollama").remote({"address": address})
    assert caught.value.code == "engine.setting_invalid"
    assert caught.value.param == "address"
    assert "node" in caught.value.hint


def test_models_of_its_cloud_and_nonsense_are_left_out():
    rows = [
        {"model": "a:latest", "digest": DIGEST, "size": 5, "details": {"format": "gguf", "family": "llama"}},
        {"model": "big-cloud", "remote_host": "https://ollama.com"},
        {"name": "old:1b", "digest": "x", "size": -1, "details": None},
        {"size": 3},
        "nonsense",
    ]
    found = adopted(b'{"version":"0.33.0"}', json.dumps({"models": rows}).encode())
    assert [(one.name, one.sha256, one.size_bytes) for one in found.models] == [
        ("a:latest", DIGEST, 5),
        ("old:1b", "", 0),
    ]


@pytest.mark.parametrize(
    ("version", "tags"),
    [
        (b"<html>", b"{}"),
        (b"{}", b"{}"),
        (b'{"version":1}', b"{}"),
        (b'{"version":"1"}', b'{"models":7}'),
        (b"[]", b"{}"),
    ],
)
def test_what_is_no_ollama_is_refused(version, tags):
    with pytest.raises(Failure) as caught:
        adopted(version, tags)
    assert "no Ollama" in caught.value.message


def test_an_ollama_without_models_has_none():
    assert adopted(b'{"version":"0.33.0"}', b'{"models":null}').models == ()
