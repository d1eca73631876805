"""What an engine is given: environment, files, argv."""

import stat
from pathlib import Path

import pytest

from adapters import registry
from core.devices import CPU_DEVICE
from core.errors import Failure
from core.ids import DeviceId
from node_agent import launching
from node_agent.launching import Prepared, Started
from node_agent.session import back_off_s
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
    return launching.prepare(
        want=nodes.want(**settings),
        adapter=registry.adapter("fake"),
        python="/usr/bin/python3",
        model_path="",
        port=20040,
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
        launching.write_files(Prepared(spec=made.spec, work_dir=made.work_dir, files={"../../escaped": ""}))
    assert not (tmp_path / "escaped").exists()


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
