"""Lines between the door and another machine's data plane that go bad: real TLS, a real HAProxy, a proxy between."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from gateway.pulse import ANSWER_S, SILENT_S, TRIES
from tests.fakes.proxy import Proxy, Way, proxied
from tests.gateway.conftest import target
from tests.gateway.scripted import Exchange, ScriptedEngine, answering, chat_chunk
from tests.gateway.test_planes import MESSAGES, Far, far_away
from tests.node_agent.planes import entry
from tests.waiting import until_async

IDLE_S = 5.0
"""`idle_timeout_s` and `first_byte_timeout_s` of most of these doors."""
PATIENT = {"idle_timeout_s": 120.0, "first_byte_timeout_s": 180.0}
"""What a door has unless it is told otherwise."""
LONG_S = SILENT_S + TRIES * ANSWER_S + 2.0


class BadLine:
    """One replica on another machine behind a proxy, and one on the door's own machine that routes may name too."""

    def __init__(self, far: Far, proxy: Proxy, engine: ScriptedEngine, near: ScriptedEngine) -> None:
        self.far = far
        self.proxy = proxy
        self.engine = engine
        self.near = near

    async def route(self, *, with_near: bool) -> None:
        targets = [self.far.target(self.engine, plane_port=self.proxy.port)]
        await self.far.route(*targets, *([target(self.near, "rep_near")] if with_near else []))

    async def answered(self, count: int) -> None:
        """Ask so many times, all of which must be answered."""
        for _ in range(count):
            assert (await self.far.ask()).choices[0].message.content == "hello"


@pytest.fixture
def door_values() -> dict[str, object]:
    return {"idle_timeout_s": IDLE_S, "first_byte_timeout_s": IDLE_S}


@pytest.fixture
async def bad(tmp_path: Path, engine: ScriptedEngine, door_values: dict[str, object]) -> AsyncIterator[BadLine]:
    async with (
        far_away(tmp_path, **door_values) as far,
        proxied(far.site.port) as proxy,
        ScriptedEngine(answering) as near,
    ):
        await far.publish(entry(engine.port))
        found = BadLine(far, proxy, engine, near)
        await found.route(with_near=False)
        await found.answered(1)
        yield found


async def holding(exchange: Exchange) -> None:
    """Say a word and then nothing."""
    if exchange.json.get("stream"):
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("Hel"))
    await exchange.closed.wait()


async def test_a_reset_before_the_first_byte_is_tried_elsewhere(bad: BadLine) -> None:
    bad.engine.script = holding
    await bad.route(with_near=True)
    bad.proxy.reset()  # no connection rests: the next request's is its own
    asked = [asyncio.ensure_future(bad.far.ask()) for _ in range(4)]

    async def are_held() -> bool:
        return len(bad.engine.exchanges) == 3  # the first was the fixture's

    await until_async(are_held, 10, "two requests at the engine")
    assert bad.proxy.reset() == 2
    for one in asked:
        assert (await one).choices[0].message.content == "hello"
    assert len(bad.near.exchanges) == 4


async def test_resting_connections_that_were_reset_cost_nobody_an_answer(bad: BadLine) -> None:
    for _ in range(4):
        assert bad.proxy.reset() == 1
        await bad.answered(2)


async def test_a_plane_that_accepts_and_says_nothing_is_passed_over(bad: BadLine) -> None:
    await bad.route(with_near=True)
    bad.proxy.hang()
    bad.proxy.reset()
    before = len(bad.near.exchanges)
    await bad.answered(4)
    assert len(bad.near.exchanges) - before == 4


async def words(bad: BadLine, then) -> tuple[str, str, float]:
    """Stream, do `then` after the first word, and return all words, the error's code, and the seconds since."""
    text, since = "", 0.0
    async with bad.far.door.client() as client:
        answer = await client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True)
        try:
            async for chunk in answer:
                text += chunk.choices[0].delta.content or ""
                if text and not since:
                    since = time.monotonic()
                    then()
        except openai.APIError as error:
            return text, str(error.code), time.monotonic() - since
    return text, "", time.monotonic() - since


async def test_a_stream_that_is_reset_ends_with_an_error_event(bad: BadLine) -> None:
    bad.engine.script = holding
    text, code, took_s = await words(bad, bad.proxy.reset)
    assert (text, code) == ("Hel", "engine_failed")
    assert took_s < IDLE_S


@pytest.mark.parametrize("ways", [(Way.DOWN,), (Way.UP, Way.DOWN)], ids=["half-open", "dead"])
async def test_a_stream_whose_line_says_nothing_more_ends_with_an_error_event(bad: BadLine, ways) -> None:
    bad.engine.script = holding
    text, code, took_s = await words(bad, lambda: bad.proxy.mute(*ways))
    assert text == "Hel"
    assert code in ("engine_timeout", "engine_failed")
    assert took_s < IDLE_S + 5.0
    bad.proxy.heal()
    bad.engine.script = answering
    await bad.answered(3)


async def test_a_slow_line_loses_no_word(bad: BadLine) -> None:
    bad.proxy.delay(0.3)
    assert await bad.far.stream() == "Hello"
    await bad.answered(2)


@pytest.mark.parametrize("door_values", [PATIENT], ids=["patient"])
async def test_nobody_waits_for_a_machine_that_is_suspended_though_its_kernel_acknowledges(bad: BadLine) -> None:
    bad.engine.script = holding
    held = asyncio.ensure_future(words(bad, lambda: None))
    asked = asyncio.ensure_future(bad.far.ask())

    async def are_held() -> bool:
        return len(bad.engine.exchanges) == 3  # the first was the fixture's

    await until_async(are_held, 10, "two requests at the engine")
    await bad.route(with_near=True)
    bad.proxy.mute()
    bad.proxy.hang()
    async with asyncio.timeout(40):
        text, code, took_s = await held
        assert (text, code) == ("Hel", "engine_failed")
        assert took_s > SILENT_S
        assert (await asked).choices[0].message.content == "hello"
    assert len(bad.near.exchanges) == 1


@pytest.mark.parametrize("door_values", [PATIENT], ids=["patient"])
async def test_an_engine_may_be_silent_for_long_on_a_machine_that_answers(bad: BadLine) -> None:
    async def thinking(exchange: Exchange) -> None:
        await asyncio.sleep(LONG_S)
        await answering(exchange)

    bad.engine.script = thinking
    assert await bad.far.stream() == "Hello"
    assert bad.proxy.accepted >= 3, "it was asked meanwhile"
