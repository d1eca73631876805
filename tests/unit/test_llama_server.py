"""What is said of a `llama-server` program; none could be had, so its flags are sought in llama.cpp's own library."""

import json
import re

import pytest

from adapters import registry
from adapters.contract import HostFacts, LaunchRequest
from core.ids import DeviceId, ReplicaId
from tests import engine_models

SERVER = registry.adapter("llama-server")
REQUEST = LaunchRequest(
    replica_id=ReplicaId("rep_one"),
    engine_version="11865",
    python="/usr/bin/python3",
    executable="/bin/llama-server",
    model_path="/store/model.gguf",
    served_name="demo",
    settings={"context": 1024, "slots": 3, "threads": 4},
    devices=(DeviceId("cpu"),),
    host="127.0.0.1",
    port=20040,
    api_key="secret-key",
    work_dir="/replica",
)


def flag(name: str) -> str:
    argv = SERVER.launch(REQUEST).argv
    return argv[argv.index(name) + 1]


def test_its_key_stands_in_a_file_and_not_in_its_arguments() -> None:
    launch = SERVER.launch(REQUEST)
    assert launch.argv[0] == "/bin/llama-server"
    assert launch.files == {"api_key": "secret-key\n"}
    assert flag("--api-key-file") == "/replica/api_key"
    assert "secret-key" not in json.dumps([launch.argv, dict(launch.env)])


def test_its_context_counts_all_slots_together() -> None:
    assert (flag("--ctx-size"), flag("--parallel"), flag("--threads")) == ("3072", "3", "4")


def test_it_listens_where_it_is_told_and_cuts_no_prompt() -> None:
    assert (flag("--host"), flag("--port")) == ("127.0.0.1", "20040")
    assert "--no-context-shift" in SERVER.launch(REQUEST).argv


def test_it_is_not_usable_where_the_program_is_not() -> None:
    host = HostFacts(system="linux", machine="x86_64", cpu_count=2, memory_bytes=2**34, devices=())
    assert not SERVER.fingerprint(host).is_usable


def test_its_version_is_the_build_that_it_prints() -> None:
    binary = SERVER.install_plan("11865").binary
    assert binary is not None
    found = re.search(binary.version_pattern, "load_backend: loaded CPU\nversion: 11900 (0a1b2c3)\nbuilt with cc\n")
    assert found is not None
    assert found[1] == "11900"


def test_it_serves_no_embeddings_beside_chat() -> None:
    assert "embeddings" not in {one.value for one in SERVER.capabilities({})}
    assert "embeddings" not in {spec.name for spec in SERVER.setting_specs}


def test_llama_cpp_s_own_library_knows_every_flag() -> None:
    adapter = registry.adapter("llamacpp")
    if not engine_models.is_installed(adapter):
        pytest.skip("llama.cpp is not installed for tests: run `make engines`")
    place = engine_models.engines_dir() / "llamacpp" / adapter.default_version
    (library,) = place.glob("lib/python*/site-packages/xllamacpp/*.so")
    data = library.read_bytes()
    flags = [word for word in SERVER.launch(REQUEST).argv if word.startswith("--")]
    assert [word for word in flags if word.encode() + b"\0" not in data] == []
