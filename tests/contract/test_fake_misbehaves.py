"""The fake engine goes wrong exactly as its settings say, and what it does to node agent and door is what users see."""

import http.client
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.contract import Endpoint
from core.infra import processes
from tests.contract.stage import Served, Stage, exchange
from tests.waiting import until

MESSAGES = [{"role": "user", "content": "one two three"}]
CHAT = {"messages": MESSAGES, "max_tokens": 6}
STREAM = {**CHAT, "stream": True}
PATH = "/v1/chat/completions"
Start = Callable[..., Served]
_numbers = itertools.count()


@pytest.fixture
def start(stage: Stage) -> Iterator[Start]:
    made: list[Served] = []

    def begin(**settings: object) -> Served:
        made.append(stage.deploy("fake", name=f"bad-{next(_numbers)}", settings=settings))
        return made[-1]

    yield begin
    for served in made:
        served.remove()


@pytest.fixture
def ready(start: Start) -> Start:
    return lambda **settings: start(**settings).wait_until_ready()


def last_event(text: str) -> dict:
    return json.loads([line for line in text.splitlines() if line.startswith("data: ")][-1][6:])


def test_it_answers_with_the_words_of_the_prompt(ready: Start) -> None:
    answer = ready().ask(Endpoint.CHAT, CHAT).json()
    assert answer["choices"][0]["message"]["content"] == "one two three one two three"


def test_it_keeps_a_connection_alive(ready: Start) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", ready().port, timeout=10)
    try:
        for _ in range(3):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status": "ok"}'
            assert connection.sock is not None
    finally:
        connection.close()


def test_it_dies_at_the_token_it_was_told(ready: Start) -> None:
    served = ready(die_at_token=3)
    reply = served.ask(Endpoint.CHAT, STREAM)
    assert reply.text.count('"content": "') == 2
    assert last_event(reply.text)["error"]["code"] == "engine_failed"
    report = served.until_report(lambda one: one.exit_signal or one.incarnation > 1, "to have died")
    assert report.exit_signal == signal.SIGKILL
    assert "killed by signal 9" in report.message


def test_it_hangs_at_the_token_it_was_told_and_stays_healthy(ready: Start) -> None:
    served = ready(hang_at_token=2)
    with pytest.raises(TimeoutError):
        served.ask(Endpoint.CHAT, STREAM, timeout_s=0.3)
    assert served.health_status() == 200


def test_a_malformed_stream_has_one_event_that_is_not_json(ready: Start) -> None:
    *events, done = ready(malformed_stream=True).ask(Endpoint.CHAT, STREAM).events()
    assert done == "[DONE]"
    assert len([event for event in events if not _is_json(event)]) == 1


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_a_truncated_stream_ends_with_an_error_and_without_done(ready: Start) -> None:
    served = ready(truncate_stream=True)
    reply = served.ask(Endpoint.CHAT, STREAM)
    assert last_event(reply.text)["error"]["code"] == "engine_failed"
    assert "[DONE]" not in reply.text
    assert served.health_status() == 200


def test_its_error_status_becomes_the_door_s_word_for_it(ready: Start) -> None:
    served = ready(http_status=503)
    reply = served.ask(Endpoint.CHAT, CHAT)
    assert (reply.status, reply.json()["error"]["code"]) == (503, "engine_busy")
    assert served.health_status() == 200


def test_it_ends_at_once_with_a_code_and_a_reason(start: Start) -> None:
    report = start(exit_at_start=7).until_state("backoff")
    assert (report.exit_code, report.code) == (7, "engine.died_at_start")
    assert "told to exit with 7" in report.log_tail[-1]


def test_it_is_unhealthy_while_it_starts(start: Start) -> None:
    served = start(start_delay_s=1.0)
    until(lambda: served.health_status() == 503, 5, "503")
    assert served.ask(Endpoint.CHAT, CHAT).status == 503
    served.wait_until_ready()
    assert served.health_status() == 200


def test_one_that_ignores_sigterm_is_killed_after_its_grace(ready: Start) -> None:
    served = ready(ignore_sigterm=True)
    pid = served.pid
    os.kill(pid, signal.SIGTERM)
    assert served.ask(Endpoint.CHAT, CHAT).status == 200
    served.ask_to_stop()
    served.until_state("stopped", served.adapter.health.stop_grace_s + 5.0)
    assert processes.mark(pid) is None


def test_its_tree_sits_in_other_sessions_under_other_names_and_ends_with_it(ready: Start) -> None:
    served = ready(fork_tree=2)
    members = served.members()
    names = sorted((Path("/proc") / str(member.pid) / "comm").read_text().strip() for member in members)
    assert names[-2:] == ["worker:0", "worker:1"]
    assert len({os.getsid(member.pid) for member in members}) == 3
    os.kill(served.pid, signal.SIGKILL)
    served.wait_until_ready(2)
    assert not [member for member in members if processes.is_alive(member)]


def test_a_port_that_its_child_holds_is_free_for_the_next_one(ready: Start) -> None:
    served = ready(hold_port=True)
    assert len(served.members()) == 2
    os.kill(served.pid, signal.SIGKILL)
    served.wait_until_ready(2)
    assert served.ask(Endpoint.CHAT, CHAT).status == 200


def test_it_really_allocates_what_it_was_told(ready: Start) -> None:
    wanted = 64 * 1024**2
    report = ready(memory_bytes=wanted).until_report(lambda one: one.memory_bytes, "to be weighed")
    assert wanted < report.memory_bytes < wanted + 24 * 1024**2


def test_tokens_come_with_the_delay_it_was_told(ready: Start) -> None:
    served = ready(token_delay_ms=20.0, tokens=5)
    with pytest.raises(TimeoutError):
        served.ask(Endpoint.CHAT, {"messages": MESSAGES}, timeout_s=0.05)
    assert served.ask(Endpoint.CHAT, {"messages": MESSAGES}).json()["usage"]["completion_tokens"] == 5


def test_its_own_port_speaks_http_that_is_cut_where_it_was_told(ready: Start) -> None:
    served = ready(truncate_stream=True)
    with pytest.raises(http.client.IncompleteRead) as cut:
        exchange(served.port, "POST", PATH, STREAM, key=served.want.engine_key)
    assert b"[DONE]" not in cut.value.partial
