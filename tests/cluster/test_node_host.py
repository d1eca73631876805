"""`slice up --node-host`: what is refused before anything starts."""

import socket
from pathlib import Path

import pytest

from cli.cluster import recording
from core.errors import Failure
from core.infra.entropy import SystemEntropy
from tests.controller.remote import free_ports


def prepared(data_dir: Path, monkeypatch: pytest.MonkeyPatch, **flags: object) -> None:
    monkeypatch.setenv("SLICE_RUNTIME_DIR", "/tmp")
    data_dir.mkdir(mode=0o700, exist_ok=True)
    loaded = recording.loaded_settings(data_dir, {"port": free_ports(), **flags})
    recording.prepared_block(data_dir, loaded, SystemEntropy(), living=frozenset())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5:7082", "http://box", "a b", "-x"])
def test_an_address_that_nobody_could_dial_is_no_node_host(tmp_path: Path, host: str) -> None:
    with pytest.raises(Failure) as caught:
        recording.loaded_settings(tmp_path, {"node_host": host})
    assert (caught.value.code, caught.value.param) == ("settings.invalid", "node_host")


def test_the_ports_of_nodes_are_not_those_of_the_door_and_the_admin_api(tmp_path: Path) -> None:
    for node_port in (7079, 7080, 7081):
        with pytest.raises(Failure) as caught:
            recording.loaded_settings(tmp_path, {"node_host": "127.0.0.1", "node_port": node_port})
        assert caught.value.param == "node_port"
    assert recording.loaded_settings(tmp_path, {"node_port": 7080}).settings.node_host == ""


def test_an_address_of_another_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match=r"192\.0\.2\.7 is no address of this machine") as caught:
        prepared(tmp_path / "d", monkeypatch, node_host="192.0.2.7")
    assert caught.value.code == "settings.invalid"


def test_a_taken_port_of_the_two_is_told_with_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_ports()
    with socket.create_server(("127.0.0.1", port + 1)), pytest.raises(Failure, match=str(port + 1)) as caught:
        prepared(tmp_path / "d", monkeypatch, node_host="127.0.0.1", node_port=port)
    assert (caught.value.code, caught.value.param) == ("cluster.port_taken", "--node-port")
    assert "pid" in caught.value.message


def test_free_ports_on_an_address_of_this_machine_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path / "d", monkeypatch, node_host="127.0.0.1", node_port=free_ports())
    assert (tmp_path / "d" / "cluster.json").exists()
