"""The fake engine goes wrong exactly as its settings say."""

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from adapters.contract import JsonValue
from tests.contract.engines import RunningEngine
from tests.waiting import until

CHAT = {"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 6}
STREAM = {**CHAT, "stream": True}
PATH = "/v1/chat/completions"
Start = Callable[[Mapping[str, JsonValue]], RunningEngine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[RunningEngine] = []

    def begin(settings: Mapping[str, JsonValue]) -> RunningEngine:
        running.append(RunningEngine("fake", directory=tmp_path, settings=settings))
        return running[-1]

    yield begin
    for engine in running:
        engine.__exit__()


def children_named(prefix: str, session_of: int) -> list[int]:
    """Return processes whose name starts with `prefix` and whose command line is that of the engine `session_of`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == session_of:
            continue
        try:
            name = (entry / "comm").read_text().strip()
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(prefix) and b"fake.json" in line:
            found.append(int(entry.name))
    return found


def test_it_answers_with_the_words_of_the_prompt(start):
    engine = start({}).wait_until_ready()
    answer = engine.ask(PATH, CHAT).json()
    assert answer["choices"][0]["message"]["content"] == "one two three one two three"


def test_it_keeps_a_connection_alive(start):
    engine = start({}).wait_until_ready()
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10)
    try:
        for _ in range(3):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status": "ok"}'
            assert connection.sock is not None
    finally:
        connection.close()


def test_it_dies_at_the_token_it_was_told(start):
    engine = start({"die_at_token": 3}).wait_until_ready()
    with pytest.raises(http.client.IncompleteRead) as cut:
        engine.ask(PATH, STREAM)
    assert cut.value.partial.count(b'"content": "') == 2
    assert engine.process.wait(5) == -signal.SIGKILL


def test_it_hangs_at_the_token_it_was_told_and_stays_healthy(start):
    engine = start({"hang_at_token": 2}).wait_until_ready()
    with pytest.raises(TimeoutError):
        engine.request("POST", PATH, STREAM, timeout_s=0.3)
    assert engine.health_status() == 200


def test_a_malformed_stream_has_one_event_that_is_not_json(start):
    engine = start({"malformed_stream": True}).wait_until_ready()
    *events, done = engine.ask(PATH, STREAM).events()
    assert done == "[DONE]"
    broken = [event for event in events if not _is_json(event)]
    assert len(broken) == 1


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_a_truncated_stream_is_cut_without_done(start):
    engine = start({"truncate_stream": True}).wait_until_ready()
    with pytest.raises(http.client.IncompleteRead) as cut:
        engine.ask(PATH, STREAM)
    assert b"[DONE]" not in cut.value.partial
    assert engine.health_status() == 200


def test_it_answers_with_the_error_status_it_was_told(start):
    engine = start({"http_status": 503}).wait_until_ready()
    assert engine.ask(PATH, CHAT).status == 503
    assert engine.health_status() == 200


def test_it_ends_at_once_with_a_code_and_a_reason(start):
    engine = start({"exit_at_start": 7})
    assert engine.process.wait(5) == 7
    assert "told to exit with 7" in engine.log.read_text()


def test_it_is_unhealthy_while_it_starts(start):
    engine = start({"start_delay_s": 1.0})
    until(lambda: engine.health_status() == 503, 5, "503")
    until(lambda: engine.health_status() == 200, 5, "200")


def test_it_ignores_sigterm_when_told(start):
    engine = start({"ignore_sigterm": True}).wait_until_ready()
    with pytest.raises(subprocess.TimeoutExpired):
        engine.terminate(0.3)
    assert engine.health_status() == 200


def test_its_tree_sits_in_other_sessions_under_other_names_and_outlives_it(start):
    engine = start({"fork_tree": 2}).wait_until_ready()
    children = children_named("worker:", engine.process.pid)
    try:
        assert len(children) == 2
        assert len({os.getsid(pid) for pid in [engine.process.pid, *children]}) == 3
        engine.process.kill()
        engine.process.wait(5)
        assert children_named("worker:", engine.process.pid) == children
        assert engine.health_status() == 0
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_a_child_holds_its_port_after_it_died(start, tmp_path):
    engine = start({"hold_port": True}).wait_until_ready()
    (holder,) = children_named("holder", engine.process.pid)
    try:
        engine.process.kill()
        engine.process.wait(5)
        second = subprocess.run(engine.process.args, capture_output=True, text=True, timeout=10)
        assert second.returncode == 4
        assert "cannot listen" in second.stderr
    finally:
        os.kill(holder, signal.SIGKILL)


def test_it_really_allocates_what_it_was_told(start):
    wanted = 64 * 1024**2
    engine = start({"memory_bytes": wanted}).wait_until_ready()
    rollup = Path(f"/proc/{engine.process.pid}/smaps_rollup").read_text()
    (pss_kib,) = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")]
    assert wanted < pss_kib * 1024 < wanted + 24 * 1024**2


def test_tokens_come_with_the_delay_it_was_told(start):
    engine = start({"token_delay_ms": 20.0, "tokens": 5}).wait_until_ready()
    with pytest.raises(TimeoutError):
        engine.request("POST", PATH, {"messages": []}, timeout_s=0.05)
    assert engine.ask(PATH, {"messages": []}).json()["usage"]["completion_tokens"] == 5
