"""A node agent with a data plane: real processes, the fake engine, a played controller."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node_agent.fence import Fence, fence_s
from tests.node_agent import controllers
from tests.node_agent.nodes import Node, desired, until_state, want
from tests.node_agent.planes import Answer, Papers, Site
from tests.waiting import until_async

BODY = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}]}).encode()


class Planed:
    """A node whose agent has a plane, and its controller."""

    def __init__(self, tmp_path: Path) -> None:
        self.node = Node(tmp_path)
        self.site = Site(tmp_path, self.node.shim_dir, Papers(tmp_path))
        self.node.config["plane"] = {
            "host": "127.0.0.1",
            "port": self.site.port,
            "tls_dir": str(tmp_path / "tls"),
            "files_socket": str(self.node.runtime / "files.sock"),
        }
        self.controller = controllers.Controller()
        self.controller.fence_ms = 1200
        self.controller.lease_ms = 3000

    async def ask(self, incarnation: int = 1, replica: str = "rep_one") -> Answer:
        caller = await self.site.call()
        try:
            return await caller.ask(
                replica=replica,
                incarnation=incarnation,
                body=BODY,
                authorization="Bearer secret",
                content_type="application/json",
            )
        finally:
            caller.close()

    async def restart(self) -> None:
        """End the node agent in good order and start another; return when its session is open."""
        hellos = len(self.controller.hellos)
        assert await self.node.end() == 0
        await self.node.start()

        async def is_open() -> bool:
            return len(self.controller.hellos) > hellos and self.controller.observed[-1].replicas[0].state == "ready"

        await until_async(is_open, 20, "the next hello")

    async def until(self, fault: str, status: int = 200, timeout_s: float = 10, **more: object) -> None:
        async def is_so() -> bool:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                answer = await self.ask(**more)
                return answer.fault == fault and (bool(fault) or answer.status == status)
            return False

        await until_async(is_so, timeout_s, fault or f"an answer {status}")


@pytest.fixture
async def planed(tmp_path: Path) -> AsyncIterator[Planed]:
    found = Planed(tmp_path)
    try:
        async with controllers.serving(found.node.control, found.controller):
            await found.node.start()
            await found.controller.want(desired(1, want()))
            await until_state(found.controller, "ready")
            yield found
    finally:
        for caller in found.site.callers:
            caller.close()
        await found.node.close()


async def test_the_node_says_where_its_plane_is_and_doors_reach_a_ready_replica_there(planed: Planed) -> None:
    hello = planed.controller.hellos[0]
    assert (hello.plane_host, hello.plane_port) == ("127.0.0.1", planed.site.port)
    answer = await planed.ask()  # the report that it is ready came after its way in
    assert (answer.status, answer.fault) == (200, "")
    assert (await planed.ask(replica="rep_two")).fault == "stale"


async def test_an_engine_that_was_restarted_is_reached_under_its_new_incarnation_only(planed: Planed) -> None:
    report = planed.controller.replica("rep_one")
    os.kill(report.pid, signal.SIGKILL)
    await planed.until("", incarnation=2)
    assert (await planed.ask(incarnation=1)).fault == "stale"


async def test_a_stopped_replica_is_stale(planed: Planed) -> None:
    await planed.controller.want(desired(2, want(desired="stop")))
    await planed.until("stale")


async def test_a_deaf_controller_fences_the_node_and_a_hearing_one_heals_it(planed: Planed) -> None:
    planed.controller.acks = False
    await planed.until("fenced")
    assert planed.controller.replica("rep_one").state == "ready"  # the engine stays warm
    planed.controller.acks = True
    await planed.until("")


async def test_a_controller_that_is_gone_takes_nothing_with_it(tmp_path: Path) -> None:
    """Its machine says that nobody listens: nobody can give the node up, so it serves on, three leases long here."""
    found = Planed(tmp_path)
    try:
        async with controllers.serving(found.node.control, found.controller):
            await found.node.start()
            await found.controller.want(desired(1, want()))
            await until_state(found.controller, "ready")
            await found.until("")
        end = time.monotonic() + 3 * found.controller.fence_ms / 1000

        async def is_over() -> bool:
            answer = await found.ask()
            assert (answer.status, answer.fault) == (200, "")
            return time.monotonic() > end

        await until_async(is_over, 20.0, "three leases to pass")
    finally:
        for caller in found.site.callers:
            caller.close()
        await found.node.close()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
async def test_the_fence_holds_without_the_node_agent_and_the_next_one_lifts_it(
    planed: Planed, number: signal.Signals
) -> None:
    assert planed.node.process is not None
    planed.node.process.send_signal(number)
    assert (await planed.ask(incarnation=2)).fault == "stale"
    await planed.until("fenced")
    if number is signal.SIGSTOP:
        planed.node.process.send_signal(signal.SIGCONT)
    else:
        await planed.node.process.wait()
        await planed.node.start()
    await planed.until("", timeout_s=20)
    assert (await planed.ask(incarnation=2)).fault == "stale"


async def test_a_node_agent_that_restarts_within_its_lease_costs_no_request(planed: Planed) -> None:
    planed.controller.fence_ms = 30_000
    planed.controller.lease_ms = 60_000
    await planed.restart()  # with a longer lease
    is_over = asyncio.Event()

    async def calling() -> list[Answer]:
        answers = []
        while not is_over.is_set():
            answers.append(await planed.ask())
        return answers

    load = asyncio.ensure_future(calling())
    await planed.restart()
    is_over.set()
    answers = await load
    assert answers
    assert {(answer.status, answer.fault) for answer in answers} == {(200, "")}


async def test_the_teardown_of_a_node_ends_its_plane(planed: Planed) -> None:
    await planed.node.close()
    with pytest.raises(OSError):
        await planed.site.call()
    assert list(planed.node.data_dir.glob("plane/*/record.json"))


# -- the fence's arithmetic --------------------------------------------------------------------------------------------


class Instants:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_counts_from_when_the_acknowledged_heartbeat_was_sent() -> None:
    now, leases = Instants(), []
    fence = Fence(now, leases.append)
    fence.begin()
    now.now += 1
    fence.open(9.0)
    fence.sent(1)
    now.now += 2
    fence.sent(2)
    now.now += 3
    fence.acknowledged(2)
    assert leases == [8.0, 6.0]
    fence.acknowledged(1)
    fence.acknowledged(2)
    fence.acknowledged(7)
    assert leases == [8.0, 6.0]


@pytest.mark.parametrize(
    "lease_s, expected", [(11.0, 9.0), (15.0, 13.0), (43.0, 38.7), (1.5, 0.5)], ids=["11", "15", "43", "short"]
)
def test_a_node_fences_itself_before_the_controller_gives_it_up(lease_s: float, expected: float) -> None:
    assert fence_s(lease_s) == pytest.approx(expected)
