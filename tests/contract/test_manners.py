"""How an engine keeps to its host: who may ask it, where it listens, what it gives away, what it weighs."""

import http.client
from pathlib import Path

import psutil
import pytest

from adapters.contract import Endpoint
from adapters.facts import facts_from_json
from tests.contract.asking import greedy
from tests.contract.conftest import Absent
from tests.contract.engines import Contestant
from tests.contract.stage import SERVED_NAME, Served


def test_it_is_healthy_without_a_key(served: Served) -> None:
    assert served.health_status() == served.adapter.health.ready_status


@pytest.mark.parametrize("key", ["", "wrong"], ids=["no key", "wrong key"])
def test_a_stranger_is_refused_by_the_engine_itself(
    served: Served, contestant: Contestant, absent: Absent, key: str
) -> None:
    if not contestant.asks_key:
        absent("it knows no API keys; it listens on loopback alone")
        return
    path = served.adapter.dialect.paths[Endpoint.CHAT]
    assert served.direct("POST", path, {"model": SERVED_NAME, **greedy(1)}, key=key).status == 401
    listed = served.direct("GET", "/v1/models", key=key)
    if contestant.hides_name:
        assert listed.status == 401
    else:
        assert [one["id"] for one in listed.json()["data"]] == [SERVED_NAME]  # that name and no more


def test_it_listens_on_loopback_only(served: Served) -> None:
    listening = [
        one.laddr
        for member in served.members()
        for one in psutil.Process(member.pid).net_connections(kind="inet")
        if one.status == psutil.CONN_LISTEN
    ]
    assert served.port in [address.port for address in listening]
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}


def test_the_key_is_on_no_command_line_and_in_no_environment(
    served: Served, contestant: Contestant, absent: Absent
) -> None:
    key = served.want.engine_key.encode()
    members = served.members()
    assert members
    if contestant.takes_key_from_environment:
        absent("it takes its key from its environment alone, which only its own user may read")
        leader = Path("/proc") / str(served.pid)
        assert key not in (leader / "cmdline").read_bytes()
        assert (leader / "environ").stat().st_mode & 0o077 == 0
        return
    for member in members:
        process = Path("/proc") / str(member.pid)
        assert key not in (process / "cmdline").read_bytes()
        assert key not in (process / "environ").read_bytes()


def test_its_files_are_its_owner_s_alone(served: Served) -> None:
    work = served.directory / "work"
    assert work.stat().st_mode & 0o077 == 0
    holders = [
        file for file in work.rglob("*") if file.is_file() and served.want.engine_key in file.read_text("latin-1")
    ]
    assert all(file.stat().st_mode & 0o077 == 0 for file in holders)


def test_no_environment_holds_what_engines_must_not_know(served: Served) -> None:
    for member in served.members():
        names = {
            entry.split(b"=")[0] for entry in (Path("/proc") / str(member.pid) / "environ").read_bytes().split(b"\0")
        }
        assert not [name for name in names if name.startswith((b"SLICE_", b"PIP_", b"HF_TOKEN"))]


def test_the_metrics_page_has_every_declared_name(served: Served, absent: Absent) -> None:
    if not served.adapter.metrics:
        absent("no metrics page")
        return
    page = served.direct("GET", "/metrics").text
    names = {line.split(" ")[0].split("{")[0] for line in page.splitlines() if line and not line.startswith("#")}
    assert set(served.adapter.metrics.values()) <= names
    assert all(ours.startswith("slice_engine_") for ours in served.adapter.metrics)


def test_generated_tokens_are_counted(served: Served, absent: Absent) -> None:
    before = served.metric("slice_engine_generated_tokens_total")
    if before is None:
        absent("no count of generated tokens")
        return
    served.ask(Endpoint.CHAT, greedy(8))
    after = served.metric("slice_engine_generated_tokens_total")
    assert after is not None
    assert 0 < after - before <= 8


def test_its_weight_is_measured_and_was_foreseen(served: Served) -> None:
    report = served.until_report(lambda one: one.memory_bytes, "to be weighed", 30.0)
    assert report.memory_bytes > 2**20
    foreseen = served.adapter.footprint(facts_from_json(served.facts_json), served.settings).total_bytes
    assert foreseen is None or report.memory_bytes <= foreseen


def test_many_idle_connections_do_not_delay_a_health_probe(served: Served) -> None:
    idle = [http.client.HTTPConnection("127.0.0.1", served.port, timeout=10) for _ in range(24)]
    try:
        for connection in idle:
            connection.request("GET", served.adapter.health.path)
            connection.getresponse().read()
        probe = served.direct("GET", served.adapter.health.path, key="", timeout_s=2.0)
        assert probe.status == served.adapter.health.ready_status
    finally:
        for connection in idle:
            connection.close()
