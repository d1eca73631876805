"""Three machines serve together; any of them may be killed, cut off, suspended or drained, and answers go on."""

import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.ggufs import write_random_llama
from tests.many.three import ONE, Heard, Three, three_machines
from tests.waiting import until_async

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]
SUSPECT_S, LOST_S = 8.0, 15.0
"""The bars, with room for a busy machine: bench/results/ has what is measured."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three() -> AsyncIterator[Three]:
    async with three_machines() as found:
        yield found


async def answers(heard: Heard, since: float, count: int = 20, deadline_s: float = 60.0) -> None:
    async def is_so() -> bool:
        return len(heard.good(since)) >= count

    await until_async(is_so, deadline_s, f"{count} good answers, not {heard.errors(since)[-3:]}")


async def spread(three: Three, name: str) -> None:
    """Deploy a model with a replica on each of two nodes that joined."""
    await three.here.slice("node", "cordon", ONE)
    await three.here.slice("deploy", "fake", "--name", name, "--replicas", "2")
    found = await three.until_ready(name, 2)
    assert {one["node"] for one in found} == {"two", "three"}
    await three.here.slice("node", "uncordon", ONE)


async def gone(three: Three, name: str) -> None:
    """Undeploy a model and wait until nothing of it is left."""
    await three.here.slice("undeploy", name)

    async def is_so() -> bool:
        return not await three.replicas(name)

    await until_async(is_so, 60.0, f"{name} to be gone")


async def test_a_replica_moves_between_machines_under_streams_and_no_request_fails(three: Three) -> None:
    await three.here.slice("deploy", "fake", "--name", "walks")
    (replica,) = await three.until_ready("walks")
    async with three.asking("walks", clients=10) as heard:
        for target in ("two", "three", ONE):
            if replica["node"] != target:
                await three.here.slice("move", replica["id"], "--to", target, "--wait", timeout_s=120)
            (replica,) = await three.until_ready("walks")
            assert replica["node"] == target
            await answers(heard, time.monotonic())
    assert heard.errors() == []
    await gone(three, "walks")


async def test_a_drained_machine_is_empty_and_no_request_failed(three: Three) -> None:
    await spread(three, "drained")
    async with three.asking("drained", clients=10) as heard:
        await answers(heard, time.monotonic())
        await three.here.slice("node", "drain", "two", "--wait", timeout_s=120)
        assert "two" not in {one["node"] for one in await three.until_ready("drained", 2)}
        await answers(heard, time.monotonic())
    assert heard.errors() == []
    await three.here.slice("node", "uncordon", "two")
    await gone(three, "drained")


async def test_a_model_file_travels_to_a_machine_that_has_no_source_of_its_own(three: Three, tmp_path: Path) -> None:
    """`file:` names a path of the controller's machine; the others have it from there, by digest."""
    file = tmp_path / "random.gguf"
    write_random_llama(file, seed=3)
    await three.here.slice("pull", "random", "--source", f"file:{file}")
    file.unlink()
    await three.here.slice("deploy", "random", "--node", "three", "--set", "context=256", "--set", "slots=1")
    (replica,) = await three.until_ready("random", deadline_s=180.0)
    assert (replica["node"], replica["engine"]) == ("three", "llamacpp")
    async with three.asking("random", clients=2, words=5) as heard:
        await answers(heard, time.monotonic(), 4)
    assert heard.errors() == []
    await gone(three, "random")


@pytest.mark.parametrize("how", ["killed", "cut", "suspended"])
async def test_a_machine_is_lost_and_answers_go_on_until_it_returns(three: Three, how: str) -> None:
    await spread(three, how)
    before = {one["node"]: one["id"] for one in await three.replicas(how)}
    async with three.asking(how, clients=10) as heard:
        await answers(heard, time.monotonic())
        at = {
            "killed": lambda: three.signal("two", signal.SIGKILL),
            "cut": lambda: three.cut("two"),
            "suspended": lambda: three.signal("two", signal.SIGSTOP),
        }[how]()
        await three.until_node("two", "lost")
        suspect_s = heard.first(at, "nodes", lambda nodes: ["two", "ready"] not in nodes.values())
        assert suspect_s is not None
        assert suspect_s <= SUSPECT_S + 4.0
        replacement = await replaced(three, how, before)
        assert replacement["node"] in (ONE, "three")
        await answers(heard, time.monotonic())
        # Nobody was told that the model is gone: another machine had it all the time.
        assert not heard.errors(at + suspect_s + 1.0)
        if how == "killed":
            await three.machines["two"].slice("up")
        elif how == "cut":
            three.heal("two")
        else:
            three.signal("two", signal.SIGCONT)
        await three.until_node("two", "ready")
        healed = time.monotonic()
        found = await three.until_ready(how, 2)
        await answers(heard, healed)
        assert not heard.errors(healed)
        assert before["three"] in {one["id"] for one in found}
    await gone(three, how)


async def replaced(three: Three, name: str, before: dict[str, str]) -> dict[str, str]:
    """Wait for a ready replica that was not there before, and return it."""
    found: list[dict[str, str]] = []

    async def is_so() -> bool:
        ready = [one for one in await three.replicas(name) if one["state"] == "ready"]
        found[:] = [one for one in ready if one["id"] not in before.values()]
        return bool(found)

    await until_async(is_so, LOST_S + 30.0, "a replacement")
    return found[0]
