"""Three machines serve together; any of them may be killed, cut off, suspended or drained, and answers go on."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.many.three import Three, three_machines
from tests.waiting import until_async

pytestmark = pytest.mark.system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three() -> AsyncIterator[Three]:
    async with three_machines() as found:
        yield found


async def _answers(heard, since: float, count: int = 20) -> None:
    async def is_so() -> bool:
        return len(heard.good(since)) >= count

    await until_async(is_so, 60.0, f"{count} good answers")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_replica_moves_between_machines_under_streams_and_no_request_fails(three: Three) -> None:
    await three.here.slice("deploy", "fake", "--name", "walks", "--node", "")
    (replica,) = await three.until_ready("walks")
    async with three.asking("walks", clients=8) as heard:
        for target in ("two", "three", "one"):
            if replica["node"] != target:
                await three.here.slice("move", replica["id"], "--to", target, "--wait", timeout_s=120)
            (replica,) = await three.until_ready("walks")
            assert replica["node"] == target
            await _answers(heard, asyncio.get_running_loop().time())
    assert heard.errors() == []
    await three.here.slice("undeploy", "walks")
