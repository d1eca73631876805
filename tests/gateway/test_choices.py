"""Several choices of an engine that gives one: asked for one by one, told as one answer."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.contract import Dialect
from gateway.openai import choices
from gateway.visit import Visit
from tests.gateway.conftest import (
    DIALECT,
    RoutesServer,
    RunningDoor,
    door_config,
    route,
    running_door,
    target,
)
from tests.gateway.raw import call
from tests.gateway.scripted import Exchange, ScriptedEngine, chat_chunk
from tests.standins.specs import check
from tests.waiting import until_async

USER = [{"role": "user", "content": "hi"}]
ONE = Dialect(paths=DIALECT.paths, refused={"n": (1,)})
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}


@pytest.fixture
async def ready(tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine) -> AsyncIterator[RunningDoor]:
    """A door whose engine gives one choice whatever `n` says."""
    engine.script = speaking
    async with running_door(door_config(tmp_path), {"fake": ONE}.get) as door:
        await routes.applied(routes.push(route(target(engine), endpoints=("chat", "completions"))))
        yield door


def word(exchange: Exchange) -> str:
    return f"seed {exchange.json.get('seed')}"


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def speaking(exchange: Exchange) -> None:
    """Say the seed; usage comes when it was asked for."""
    asked, text = exchange.json, word(exchange)
    assert "n" not in asked
    if not asked.get("stream"):
        is_chat = "messages" in asked
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if is_chat else {"text": text}
        prompts = asked["prompt"] if isinstance(asked.get("prompt"), list) else [""]
        kind = "chat.completion" if is_chat else "text_completion"
        found = [{"index": index, "finish_reason": "stop", "logprobs": None, **said} for index, _ in enumerate(prompts)]
        answer = {"id": f"c{text}", "object": kind, "created": 1, "model": "smollm2", "choices": found, "usage": USAGE}
        await exchange.reply(json.dumps(answer).encode())
        return
    await exchange.begin_stream()
    for piece in text.split(" "):
        await exchange.chunk(chat_chunk(piece).replace(b'"c1"', json.dumps(text).encode()))
        await asyncio.sleep(0)
    await exchange.chunk(chat_chunk("", finish="stop"))
    if (asked.get("stream_options") or {}).get("include_usage"):
        head = {"id": text, "object": "chat.completion.chunk", "created": 1, "model": "smollm2"}
        await exchange.chunk(event({**head, "choices": [], "usage": USAGE}))
    await exchange.chunk(b"data: [DONE]\n\n")
    await exchange.end_stream()


def thrice(usage: dict) -> dict:
    return {name: thrice(value) if isinstance(value, dict) else 3 * value for name, value in usage.items()}


async def test_the_official_client_gets_as_many_choices_as_it_asks_for(
    ready: RunningDoor, engine: ScriptedEngine
) -> None:
    async with ready.client() as client:
        answer = await client.chat.completions.create(model="smollm2", messages=USER, n=3, seed=7)
    assert [(one.index, one.message.content) for one in answer.choices] == [
        (0, "seed 7"),
        (1, "seed 8"),
        (2, "seed 9"),
    ]
    assert answer.usage.model_dump(exclude_none=True) == thrice(USAGE)
    assert len(engine.exchanges) == 3


async def test_the_answer_fits_the_spec(ready: RunningDoor) -> None:
    asked = {"model": "smollm2", "messages": USER, "n": 2}
    answer = await call(ready.port, "POST", "/v1/chat/completions", asked)
    check("openai", "CreateChatCompletionResponse", json.loads(answer.body))
    assert answer.header("x-slice-replica") == "rep_a"


async def test_the_choices_of_one_prompt_lie_together(ready: RunningDoor) -> None:
    asked = {"model": "smollm2", "prompt": ["a", "b"], "n": 2, "seed": 1}
    answer = json.loads((await call(ready.port, "POST", "/v1/completions", asked)).body)
    assert [(one["index"], one["text"]) for one in answer["choices"]] == [
        (0, "seed 1"),
        (1, "seed 2"),
        (2, "seed 1"),
        (3, "seed 2"),
    ]


@pytest.mark.parametrize("wants_usage", [True, False])
async def test_streams_come_interleaved_under_one_id_and_end_once(ready: RunningDoor, wants_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    asked = {"model": "smollm2", "messages": USER, "n": 3, "seed": 7, "stream": True, **options}
    body = (await call(ready.port, "POST", "/v1/chat/completions", asked)).body
    assert body.count(b"[DONE]") == 1
    assert body.endswith(b"data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    for one in events:
        check("openai", "CreateChatCompletionStreamResponse", one)
    texts = dict.fromkeys(range(3), "")
    for one in events:
        for choice in one["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "seed7", 1: "seed8", 2: "seed9"}
    assert len({one["id"] for one in events}) == 1
    told = [one for one in events if one.get("usage")]
    assert [one["usage"] for one in told] == ([thrice(USAGE)] if wants_usage else [])
    assert not told or events[-1]["choices"] == []


async def test_the_official_client_streams_several_choices(ready: RunningDoor) -> None:
    async with ready.client() as client:
        stream = await client.chat.completions.create(model="smollm2", messages=USER, n=2, stream=True)
        seen = {choice.index async for chunk in stream for choice in chunk.choices}
    assert seen == {0, 1}


async def test_a_refusal_of_one_part_refuses_all_and_frees_the_others(
    ready: RunningDoor, engine: ScriptedEngine
) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.json["seed"] == 2:
            await exchange.reply(b'{"error":{"message":"too odd","type":"invalid","code":400}}', status=400)
        else:
            await exchange.closed.wait()

    engine.script = script
    for is_stream in (False, True):
        asked = {"model": "smollm2", "messages": USER, "n": 3, "seed": 1, "stream": is_stream}
        answer = await call(ready.port, "POST", "/v1/chat/completions", asked)
        assert (answer.status, answer.error["code"]) == (400, "invalid_request")

    async def is_idle() -> bool:
        return ready.door.balance.in_flight() == {}

    await until_async(is_idle, 5, "every part let go")


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(b"", id="dies"),
        pytest.param(event({"error": {"message": "out of memory", "type": "x"}}), id="says so"),
        pytest.param(b"data: nonsense\n\n", id="talks nonsense"),
    ],
)
async def test_a_part_that_breaks_off_ends_the_stream_with_an_error(
    ready: RunningDoor, engine: ScriptedEngine, last: bytes
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("a"))
        if exchange.json["seed"] == 2:
            if last:
                await exchange.chunk(last)
            await exchange.line.drained()
            exchange.die()
        await exchange.closed.wait()

    engine.script = script
    async with ready.client() as client:
        stream = await client.chat.completions.create(model="smollm2", messages=USER, n=2, seed=1, stream=True)
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
    assert caught.value.code == "engine_failed"


async def test_a_part_whose_replica_dies_is_asked_of_another(
    ready: RunningDoor, engine: ScriptedEngine, routes
) -> None:
    async def dying(exchange: Exchange) -> None:
        exchange.die()

    async with ScriptedEngine(dying) as dead:
        await routes.applied(routes.push(route(target(dead, "rep_b"), target(engine))))
        asked = {"model": "smollm2", "messages": USER, "n": 4}
        answer = await call(ready.port, "POST", "/v1/chat/completions", asked)
    assert answer.status == 200
    assert len(json.loads(answer.body)["choices"]) == 4


async def test_what_is_counted_of_the_parts_stands_in_one_tally(ready: RunningDoor, engine: ScriptedEngine) -> None:
    ended: list[Visit] = []
    ready.door.app._on_end = ended.append
    for is_stream in (False, True):
        asked = {"model": "smollm2", "messages": USER, "n": 3, "seed": 1, "stream": is_stream}
        await call(ready.port, "POST", "/v1/chat/completions", asked)

    async def have_ended() -> bool:
        return len(ended) == 2

    await until_async(have_ended, 5, "both visits")
    for visit in ended:
        tally = visit.tally
        assert (tally.model, tally.attempts, tally.status, tally.code) == ("smollm2", 3, 200, "")
        assert tally.target is not None
        assert tally.route is not None
        assert tally.first_byte_s > 0


async def test_a_client_that_leaves_frees_every_engine(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("a"))
        await exchange.closed.wait()

    engine.script = script
    async with ready.client() as client:
        stream = await client.chat.completions.create(model="smollm2", messages=USER, n=3, stream=True)
        await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(5):
            for exchange in engine.exchanges:
                await exchange.closed.wait()


async def test_what_is_no_answer_is_a_502(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.reply(b'{"choices": 3}')

    engine.script = script
    for is_stream in (False, True):
        asked = {"model": "smollm2", "messages": USER, "n": 2, "stream": is_stream}
        answer = await call(ready.port, "POST", "/v1/chat/completions", asked)
        assert (answer.status, answer.error["code"]) == (502, "engine_failed")


async def test_an_engine_that_knows_n_is_asked_once(
    tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async with running_door(door_config(tmp_path)) as door:
        await routes.applied(routes.push(route(target(engine))))
        await call(door.port, "POST", "/v1/chat/completions", {"model": "smollm2", "messages": USER, "n": 2})
    assert [one.json["n"] for one in engine.exchanges] == [2]


STREAM = (
    b": a comment\r\n\r\n"
    + event({"id": "a", "created": 4, "choices": [{"index": 0, "delta": {"content": 'x\n"error"'}}]})
    + event({"id": "a", "created": 4, "choices": [{"index": 0, "delta": {}}], "usage": {"total_tokens": 2}})
    + b"data: [DONE]\r\n\r\n"
)


def braided(first: list[bytes], second: list[bytes]) -> bytes:
    braid = choices.Braid(2)
    one, other = braid.strand(0), braid.strand(1)
    told = b"".join([one.feed(piece) for piece in first] + [other.feed(piece) for piece in second])
    return told + braid.end()


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_wherever_a_stream_is_cut_the_braid_is_the_same(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(places)]
    assert braided(pieces, [STREAM]) == braided([STREAM], [STREAM])


def test_cut_at_every_byte_the_braid_is_the_same_and_adds_what_was_used() -> None:
    whole = braided([STREAM], [STREAM])
    for cut in range(len(STREAM)):
        assert braided([STREAM[:cut], STREAM[cut:]], [STREAM]) == whole
    *_, used, end, _ = whole.split(b"\n\n")
    assert json.loads(used[6:]) == {"id": "a", "created": 4, "choices": [], "usage": {"total_tokens": 4}}
    assert end == b"data: [DONE]"


def test_an_error_ends_its_strand() -> None:
    strand = choices.Braid(2).strand(0)
    error = event({"error": {"message": "x"}})
    assert strand.feed(error + STREAM) == b""
    assert strand.failure == error[6:-2]


@pytest.mark.parametrize("seed, sent", [(None, [None, None]), (5, [5, 6]), ("x", ["x", "x"])])
def test_a_seed_is_counted_on_and_all_else_keeps_its_bytes(seed: object, sent: list) -> None:
    body = json.dumps({"model": "m", "n": 2, "seed": seed, "t": 1.50}).encode()
    parts = choices.parts(body, 2)
    assert [json.loads(one).get("seed") for one in parts] == sent
    assert all("n" not in json.loads(one) for one in parts)
