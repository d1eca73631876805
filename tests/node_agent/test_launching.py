"""What an engine is given: environment, files, argv."""

import hashlib
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from adapters import registry
from adapters.contract import ModelFile
from core.devices import CPU_DEVICE
from core.errors import Failure
from core.ids import DeviceId, Sha256
from node_agent import launching
from node_agent.engines import Installed
from node_agent.launching import Prepared, Started
from node_agent.session import back_off_s, pause_s
from node_agent.shim_client import ShimSpec
from tests.node_agent import nodes

OURS = {
    "PATH": "/bin",
    "HOME": "/root",
    "CUDA_HOME": "/usr/local/cuda",
    "SLICE_TOKEN": "s",
    "HF_TOKEN": "s",
    "PIP_INDEX_URL": "https://user:secret@mirror",
    "HTTPS_PROXY": "http://proxy",
    "PYTHONOPTIMIZE": "1",
}


def test_no_token_reaches_an_engine() -> None:
    assert launching.engine_base_environment(OURS) == {
        "PATH": "/bin",
        "HOME": "/root",
        "CUDA_HOME": "/usr/local/cuda",
    }


def test_pip_gets_its_own_settings_and_proxies_but_no_token() -> None:
    assert set(launching.installer_environment(OURS)) == {"PATH", "HOME", "CUDA_HOME", "PIP_INDEX_URL", "HTTPS_PROXY"}


@pytest.mark.parametrize(
    ("devices", "visible"),
    [([], ""), ([CPU_DEVICE], ""), (["GPU-a"], "GPU-a"), (["GPU-a", "GPU-b"], "GPU-a,GPU-b")],
    ids=["none", "cpu", "one", "two"],
)
def test_an_engine_sees_only_the_gpus_it_was_promised(devices: list[DeviceId], visible: str) -> None:
    assert launching.device_environment(devices) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible}


def prepared(tmp_path: Path, **settings: object) -> Prepared:
    want = nodes.want(**settings)
    request = launching.request_of(
        want=want,
        installed=Installed(python="/usr/bin/python3"),
        files=(),
        port=20040,
        replica_dir=tmp_path / "rep_one",
    )
    return launching.prepare(
        want=want,
        adapter=registry.adapter("fake"),
        request=request,
        incarnation=3,
        replica_dir=tmp_path / "rep_one",
        socket_path=tmp_path / "rep_one.sock",
        environment=OURS,
    )


def test_a_spawn_is_made_of_the_want_and_the_adapter(tmp_path: Path) -> None:
    made = prepared(tmp_path, tokens=3)
    assert isinstance(made.spec, ShimSpec)
    assert (made.spec.shim_id, made.spec.incarnation, made.spec.stop_grace_s) == ("rep_one", 3, 3.0)
    assert not {"SLICE_TOKEN", "HF_TOKEN", "PIP_INDEX_URL"} & set(made.spec.env)
    assert not any("secret" in word for word in made.spec.argv)


def test_its_files_are_private_and_stay_in_their_directory(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    launching.write_files(made)
    (file,) = made.work_dir.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(Failure, match="outside"):
        launching.write_files(replace(made, files={"../../escaped": ""}))
    assert not (tmp_path / "escaped").exists()


def stored(tmp_path: Path, path: str, content: bytes = b"bytes") -> ModelFile:
    digest = Sha256(hashlib.sha256(path.encode()).hexdigest())
    (tmp_path / digest).write_bytes(content)
    return ModelFile(path=path, sha256=digest, size_bytes=len(content), stored_at=str(tmp_path / digest))


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], ""),
        (["m.gguf"], "STORE"),
        ([""], "STORE"),
        (["model.bin"], "STORE"),
        (["M.GGUF"], "STORE"),
        (["M-1-of-2.GGUF", "M-2-of-2.GGUF"], "m/M-1-of-2.GGUF"),
        (["M.SafeTensors"], "m"),
        (["m-1-of-2.gguf", "m-2-of-2.gguf"], "m/m-1-of-2.gguf"),
        (["model.safetensors", "config.json"], "m"),
    ],
    ids=[
        "no file",
        "one gguf",
        "one without a name",
        "by its first bytes",
        "in capitals",
        "parts in capitals",
        "one safetensors",
        "gguf in parts",
        "a folder",
    ],
)
def test_an_engine_is_pointed_at_the_file_or_at_a_folder_of_links(tmp_path: Path, paths: list[str], expected: str):
    files = [stored(tmp_path, path) for path in paths]
    links = tmp_path / "m"
    launching.link_model(files, links)
    wanted = files[0].stored_at if expected == "STORE" else str(tmp_path / expected) if expected else ""
    assert launching.model_path(files, links) == wanted
    if links.exists():
        assert {one.name for one in links.iterdir()} == set(paths)
        assert all((links / file.path).samefile(file.stored_at) for file in files)


def test_a_model_file_stays_in_its_directory(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="outside"):
        launching.link_model([stored(tmp_path, "../escaped.safetensors")], tmp_path / "m")
    assert not (tmp_path / "escaped.safetensors").exists()


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_settings_that_are_no_object_are_refused(text: str) -> None:
    want = nodes.want()
    want.settings_json = text
    with pytest.raises(Failure) as caught:
        launching.settings_of(want)
    assert caught.value.code == "request.invalid_json"


def test_what_was_started_is_read_back(tmp_path: Path) -> None:
    started = Started(incarnation=2, port=20041, boot_id="b", spawned_at=12.5, load_s=0.5)
    launching.save_started(tmp_path, started)
    assert launching.load_started(tmp_path) == started
    (tmp_path / "launch.json").write_text('{"port": 1}')
    assert launching.load_started(tmp_path) is None


def test_reconnects_are_paced_with_full_jitter() -> None:
    assert [back_off_s(attempt, 1.0) for attempt in (0, 1, 2, 10, 10_000)] == [0.2, 0.4, 0.8, 5.0, 5.0]
    assert back_off_s(7, 0.0) == 0.0


def test_what_the_controller_told_is_kept_with_up_to_a_quarter_more_and_only_else_the_back_off_counts() -> None:
    assert [pause_s(9, chance, 2.0) for chance in (0.0, 0.5, 1.0)] == [2.0, 2.25, 2.5]
    assert pause_s(2, 1.0, 0.0) == back_off_s(2, 1.0)
