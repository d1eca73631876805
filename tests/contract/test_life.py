"""An engine's life under the node agent: it is cut, killed, doubled, adopted and stopped, and nothing is left of it."""

import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.contract import Endpoint
from core.infra import processes
from core.infra.processes import ProcessMark
from tests.contract import watching
from tests.contract.asking import MESSAGES, greedy
from tests.contract.engines import Contestant
from tests.contract.stage import Served, Stage
from tests.waiting import until

LONG = {"messages": MESSAGES, "max_tokens": 800}
CANCEL_S = 0.3
TERMINAL_S = 5.0


def living(members: list[ProcessMark]) -> list[ProcessMark]:
    return [member for member in members if processes.is_alive(member)]


# -- cancellation --------------------------------------------------------------------------------------------------


RUNNING = "slice_engine_requests_running"


def said(name: str, took: list[float], record_property: Callable[[str, object], None]) -> float:
    """Print and record the median of `took` and return it, seconds."""
    median = statistics.median(took)
    record_property("said", f"{median * 1000:.0f} ms")
    print(f"{name}: freed after {median * 1000:.0f} ms ({[round(one * 1000) for one in took]})")
    return median


def test_a_client_that_leaves_a_stream_frees_the_engine_at_once(
    served: Served, contestant: Contestant, record_property: Callable[[str, object], None]
) -> None:
    took = []
    for _ in range(5):
        with served.stream({**LONG, "stream": True}) as answer:
            answer.read(200)
        if contestant.says_when_idle:
            took.append(watching.until_low_s(lambda: served.metric(RUNNING), 0, 20.0))
        else:
            took.append(watching.idle_after_s(served.members(), 20.0))
    assert said(served.name, took, record_property) <= CANCEL_S
    assert served.ask(Endpoint.CHAT, greedy(2)).status == 200


def test_a_client_that_leaves_before_a_whole_answer_frees_the_engine_at_once(
    served: Served, contestant: Contestant, record_property: Callable[[str, object], None]
) -> None:
    """Beside a stream that goes on, where the engine tells how many requests run; else alone, by its CPU time."""
    took = []
    long = {**LONG, "max_tokens": contestant.context - 200}  # neither may be over before both were seen to run
    if served.metric(RUNNING) is None:
        for _ in range(3):
            before = watching.cpu_s(served.members())
            with served.unanswered(long):
                until(lambda: watching.cpu_s(served.members()) > before + 0.1, 30.0, "work to begin")  # noqa: B023
            took.append(watching.idle_after_s(served.members(), 20.0))
    else:
        for _ in range(3):
            with served.stream({**long, "stream": True}) as other:
                other.read(100)
                with served.unanswered(long):
                    until(lambda: (served.metric(RUNNING) or 0) >= 2, 30.0, "two requests to run")
                took.append(watching.until_low_s(lambda: served.metric(RUNNING), 1, 20.0))
    assert said(served.name, took, record_property) <= CANCEL_S


# -- its leader is killed ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Crash:
    """What was seen of an engine whose leader was killed in the middle of a stream."""

    members: list[ProcessMark]
    stream: str
    ended_after_s: float
    code: str
    incarnation: int
    answered: int


@pytest.fixture(scope="session")
def crash(served: Served) -> Crash:
    before = served.until_state("ready")
    members = served.members()
    with served.stream({**LONG, "stream": True}) as answer:
        stream = answer.read(300)
        os.kill(before.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        stream += answer.read()
        ended_after_s = time.monotonic() - killed_at
    down = served.until_report(lambda one: one.state != "ready" or one.incarnation > before.incarnation, "to be down")
    served.wait_until_ready(before.incarnation + 1)
    report = served.until_state("ready")
    return Crash(
        members=members,
        stream=stream.decode(),
        ended_after_s=ended_after_s,
        code=down.code,
        incarnation=report.incarnation - before.incarnation,
        answered=served.ask(Endpoint.CHAT, greedy(2)).status,
    )


def test_a_stream_whose_engine_dies_ends_with_an_error_event(crash: Crash) -> None:
    last = [line for line in crash.stream.splitlines() if line.startswith("data: ")][-1]
    assert json.loads(last[6:])["error"]["code"] == "engine_failed"
    assert crash.ended_after_s <= TERMINAL_S


def test_an_engine_whose_leader_was_killed_is_started_again(crash: Crash) -> None:
    assert (crash.incarnation, crash.answered) == (1, 200)


def test_nothing_is_left_of_an_engine_whose_leader_was_killed(crash: Crash) -> None:
    assert crash.members
    assert living(crash.members) == []


# -- its node agent is killed --------------------------------------------------------------------------------------


def test_it_serves_on_while_its_node_agent_is_killed_and_comes_back(stage: Stage, served: Served) -> None:
    before = served.until_state("ready")
    # What it was ready with must be on disk before the next life may rely on it.
    until(lambda: json.loads((served.directory / "launch.json").read_text())["load_s"], 10.0, "the load to be noted")
    hellos = stage.hellos()
    over = threading.Event()

    def keep_asking() -> list[int]:
        statuses = []
        while not over.is_set():
            statuses.append(served.ask(Endpoint.CHAT, greedy(2)).status)
        return statuses

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(keep_asking)
        try:
            stage.end_agent(signal.SIGKILL)
            stage.start_agent()
            until(lambda: stage.hellos() > hellos, 30.0, "the node agent's hello")
            served.wait_until_ready()
        finally:
            over.set()
        statuses = asking.result()
    after = served.until_state("ready")
    assert (after.pid, after.port, after.incarnation) == (before.pid, before.port, before.incarnation)
    assert len(statuses) >= 2
    assert set(statuses) == {200}


# -- a second one of its kind --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SecondLife:
    """What was seen of a second replica from its first second to its last, beside the first that served on."""

    waiting: list[dict]
    first_meanwhile: list[int]
    both: list[int]
    members: list[ProcessMark]
    streams: list[str]
    stopped_after_s: float
    first_after: int


@pytest.fixture(scope="session")
def second_life(stage: Stage, contestant: Contestant, served: Served, models: Path) -> SecondLife:
    second = stage.deploy(
        contestant.engine,
        name=f"{contestant.name}-second",
        model=contestant.model and contestant.model(models),
        settings={**contestant.settings, **contestant.slow_start},
    )
    waiting, first_meanwhile, pause = [], [], threading.Event()
    while second.until_report(lambda _: True, "to be known").state != "ready":
        reply = second.ask(Endpoint.CHAT, greedy(2))
        if reply.status == 200:
            break
        waiting.append({"status": reply.status, **reply.json()["error"]})
        first_meanwhile.append(served.ask(Endpoint.CHAT, greedy(2)).status)
        pause.wait(0.5)  # asked without a pause, one that spins leaves the other no core to start on
    second.wait_until_ready()
    with ThreadPoolExecutor(2) as pool:
        both = [reply.status for reply in pool.map(lambda one: one.ask(Endpoint.CHAT, greedy(8)), (served, second))]
    members = second.members()
    with ThreadPoolExecutor(2) as pool:
        begun = threading.Semaphore(0)

        def stream() -> str:
            with second.stream({**LONG, "stream": True}) as answer:
                begin = answer.read(100)
                begun.release()
                return (begin + answer.read()).decode()

        streams = [pool.submit(stream) for _ in range(2)]
        for _ in streams:
            assert begun.acquire(timeout=60.0)
        asked_at = time.monotonic()
        second.ask_to_stop()
        second.until_state("stopped", 60.0)
        stopped_after_s = time.monotonic() - asked_at
        texts = [one.result(30.0) for one in streams]
    seen = SecondLife(
        waiting=waiting,
        first_meanwhile=first_meanwhile,
        both=both,
        members=members,
        streams=texts,
        stopped_after_s=stopped_after_s,
        first_after=served.ask(Endpoint.CHAT, greedy(2)).status,
    )
    second.remove()
    return seen


def test_while_it_starts_the_door_says_to_come_back_later(second_life: SecondLife) -> None:
    assert second_life.waiting
    assert {(one["status"], one["code"]) for one in second_life.waiting} == {(503, "model_not_ready")}


def test_two_models_serve_on_one_node(second_life: SecondLife) -> None:
    assert set(second_life.first_meanwhile) <= {200}
    assert second_life.both == [200, 200]
    assert second_life.first_after == 200


def test_it_stops_within_its_grace_even_while_it_generates(second_life: SecondLife, served: Served) -> None:
    assert second_life.stopped_after_s <= served.adapter.health.stop_grace_s + 2.0


def test_streams_of_an_engine_that_is_stopped_end_with_a_word(second_life: SecondLife) -> None:
    for text in second_life.streams:
        last = [line for line in text.splitlines() if line.startswith("data: ")][-1]
        assert last == "data: [DONE]" or "error" in json.loads(last[6:])


def test_nothing_is_left_of_an_engine_that_was_stopped(second_life: SecondLife) -> None:
    assert second_life.members
    assert living(second_life.members) == []
