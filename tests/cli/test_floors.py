"""What `slice doctor` says of versions that are too old, and of an Ollama that nobody adopted."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters import floors as adapter_floors
from adapters.fake.adapter import Fake
from cli.cluster import floors
from core.infra.cluster import ClusterBlock
from protos.slice.node.v1 import node_pb2
from tests.node_agent.test_adoption import Ollama, ollama


class Old(Fake):
    """An engine with a floor."""

    @property
    def name(self) -> str:
        return "old"

    @property
    def floor(self) -> tuple[str, str]:
        return ("0.17.1", "CVE-2026-7482")


@pytest.mark.parametrize(
    ("version", "is_below"), [("0.17.0", True), ("0.17.1-rc1", True), ("0.17.1", False), ("0.33", False), ("", False)]
)
def test_a_version_below_an_engines_floor_names_the_advisory(version: str, is_below: bool) -> None:
    why = adapter_floors.below_floor(Old(), version)
    assert bool(why) is is_below
    assert not why or "CVE-2026-7482" in why


def test_an_engine_without_a_floor_has_nothing_against_it() -> None:
    assert adapter_floors.below_floor(Fake(), "0.0.1") == ""


@pytest.mark.parametrize(
    ("version", "is_old"),
    [("18.6", False), ("18.5", True), ("17.8", False), ("17.7", True), ("14.20", True), ("19.0", False), ("", False)],
)
def test_each_major_of_postgresql_has_a_floor_of_its_own(version: str, is_old: bool) -> None:
    assert bool(floors.postgres_fault(version)) is is_old


@pytest.mark.parametrize(
    ("version", "is_old"),
    [
        ("1.1.5", True),
        ("1.2.7", True),
        ("1.2.8", False),
        ("1.3.2", True),
        ("1.3.3", False),
        ("1.4.0-rc.2", True),
        ("1.4.0", False),
        ("1.5.0", False),
        ("", False),
    ],
)
def test_each_series_of_runc_has_a_floor_of_its_own(version: str, is_old: bool) -> None:
    assert bool(floors.runc_fault(version)) is is_old


def test_a_program_is_asked_for_its_version_and_may_hang_or_be_absent(tmp_path: Path) -> None:
    program = tmp_path / "runc"
    program.write_text("#!/bin/sh\necho 'runc version 1.1.5+ds1'\n")
    program.chmod(0o755)
    assert floors.said((str(program), "--version")) == "1.1.5"
    assert floors.said(("/nowhere/runc", "--version")) == ""
    (finding,) = floors.container_runtime(str(tmp_path))
    assert (finding.name, finding.is_ok, "CVE-2025-31133" in finding.hint) == ("runc", None, True)
    assert list(floors.container_runtime(str(tmp_path / "empty"))) == []


def test_every_package_that_we_pin_is_above_its_floor() -> None:
    assert [finding.name for finding in floors.packages() if finding.is_ok is False] == []


@pytest.fixture
def block(tmp_path: Path) -> ClusterBlock:
    made = ClusterBlock(
        cluster_id="clu_1",
        data_dir=tmp_path,
        runtime_dir=tmp_path / "run",
        host="127.0.0.1",
        door_port=1,
        controller_port=2,
        base_port=20000,
    )
    made.node_dir.mkdir()
    return made


@pytest.fixture
def played() -> Iterator[Ollama]:
    with ollama() as running:
        yield running


def port_of(played: Ollama) -> int:
    return int(played.url.rsplit(":", 1)[1])


def test_an_ollama_that_nobody_adopted_is_worth_a_note(block: ClusterBlock, played: Ollama) -> None:
    for known in (block, None):
        (finding,) = floors.strangers(known, ("127.0.0.1", port_of(played)))
        assert (finding.is_ok, "0.33.0 answers at" in finding.detail) == (None, True)
        assert "slice engine adopt ollama" in finding.hint
    assert set(played.heard) == {"GET /api/version"}


def test_an_adopted_ollama_is_not(block: ClusterBlock, played: Ollama) -> None:
    desired = node_pb2.Desired(engines=[node_pb2.EngineWant(engine="ollama", adopt_url=played.url)])
    encoded = base64.b64encode(desired.SerializeToString()).decode()
    (block.node_dir / "applied.json").write_text(json.dumps({"desired": encoded}))
    assert list(floors.strangers(block, ("127.0.0.1", port_of(played)))) == []


def test_no_ollama_or_another_program_is_no_line(block: ClusterBlock, played: Ollama) -> None:
    played.answers["/api/version"] = b"<html>"
    assert list(floors.strangers(block, ("127.0.0.1", port_of(played)))) == []
    assert list(floors.strangers(block, ("127.0.0.1", 1))) == []
