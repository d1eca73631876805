"""One way of a line becomes a black hole. Machines of its own: one that was lost three times takes replicas last."""

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.many.test_three_nodes import answers, gone, replaced, spread
from tests.many.three import ONE, Three, three_machines

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three() -> AsyncIterator[Three]:
    async with three_machines() as found:
        yield found


@pytest.mark.parametrize("way", [("two", ONE), (ONE, "two")], ids=["from it", "to it"])
async def test_a_machine_whose_words_vanish_one_way_is_lost_and_comes_back(three: Three, way: tuple[str, str]) -> None:
    """A wrong hardware address: one way is a black hole, the other works, and no wire is down anywhere."""
    await spread(three, "hole")
    before = {one["node"]: one["id"] for one in await three.replicas("hole")}
    async with three.asking("hole", clients=10) as heard:
        await answers(heard, time.monotonic())
        at = three.black_hole(*way)
        await three.until_node("two", "lost")
        suspect_s = heard.first(at, "nodes", lambda nodes: ["two", "ready"] not in nodes.values())
        lost_s = heard.first(at, "nodes", lambda nodes: ["two", "lost"] in nodes.values())
        assert suspect_s is not None
        assert lost_s is not None
        assert suspect_s < lost_s
        await replaced(three, "hole", before)
        await answers(heard, time.monotonic())
        assert not heard.errors(at + suspect_s + 1.0)
        three.refill(*way)
        await three.until_node("two", "ready")
        healed = time.monotonic()
        found = await three.until_ready("hole", 2)
        await answers(heard, healed)
        assert not heard.errors(healed)
        assert before["three"] in {one["id"] for one in found}
    await gone(three, "hole")
