"""What a client sees when an engine dies, stalls, refuses or talks nonsense."""

import asyncio
import json

import openai
import pytest

from tests.gateway.conftest import RoutesServer, RunningDoor, door_config, route, running_door, target
from tests.gateway.raw import call
from tests.gateway.scripted import Exchange, ScriptedEngine, answering, chat_answer, chat_chunk

MESSAGES = [{"role": "user", "content": "hi"}]
ASKED = {"model": "smollm2", "messages": MESSAGES}
CHAT = "/v1/chat/completions"


def replying(status: int, body: object) -> object:
    async def script(exchange: Exchange) -> None:
        await exchange.reply(json.dumps(body).encode(), status=status)

    return script


async def dying(exchange: Exchange) -> None:
    exchange.die()


async def dying_mid_stream(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.chunk(chat_chunk("Hel"))
    await exchange.chunk(b'data: {"id":"half an ev')
    await exchange.line.drained()
    exchange.die()


def stream_events(body: bytes) -> list[bytes]:
    return [event for event in body.split(b"\n\n") if event]


@pytest.mark.parametrize(
    "status, body, expected, code, words",
    [
        pytest.param(
            400,
            {"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_ctx": 512}},
            400,
            "context_length_exceeded",
            "does not fit",
            id="overflow",
        ),
        pytest.param(
            400,
            {"error": {"message": "grammar is invalid"}},
            400,
            "invalid_request",
            "grammar is invalid",
            id="refusal",
        ),
        pytest.param(
            400,
            {"error": {"message": "Traceback (most recent call last):\n File /opt/x.py"}},
            400,
            "invalid_request",
            "refused",
            id="stack",
        ),
        pytest.param(422, {"error": "bad", "error_type": "validation"}, 400, "invalid_request", "bad", id="TGI"),
        pytest.param(401, {"error": {"message": "Invalid API Key"}}, 502, "engine_failed", "failed", id="our key"),
        pytest.param(404, {"error": {"message": "no"}}, 502, "engine_failed", "failed", id="our path"),
        pytest.param(500, {"error": {"message": "CUDA OOM"}}, 502, "engine_failed", "failed", id="crash"),
        pytest.param(503, {"error": {"message": "Loading model"}}, 503, "engine_busy", "busy", id="loading"),
        pytest.param(429, {}, 503, "engine_busy", "busy", id="busy"),
    ],
)
async def test_an_engines_error_is_put_into_our_words(
    ready: RunningDoor, engine: ScriptedEngine, status: int, body: object, expected: int, code: str, words: str
) -> None:
    engine.script = replying(status, body)
    answer = await call(ready.port, "POST", CHAT, ASKED)
    assert (answer.status, answer.error["code"]) == (expected, code)
    assert words in answer.error["message"]
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert not any(word in answer.error["message"] for word in ("Traceback", "CUDA", "/opt", "API Key"))


async def test_an_overflow_names_the_messages(ready: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = replying(400, {"error": {"type": "exceed_context_size_error", "message": "x"}})
    async with ready.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="smollm2", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


async def test_an_engine_that_dies_mid_stream_ends_it_with_an_error_and_no_done(
    ready: RunningDoor, engine: ScriptedEngine
) -> None:
    engine.script = dying_mid_stream
    answer = await call(ready.port, "POST", CHAT, {**ASKED, "stream": True})
    events = stream_events(answer.body)
    assert answer.status == 200
    assert events[0] + b"\n\n" == chat_chunk("Hel")
    assert json.loads(events[-1].removeprefix(b"data: "))["error"]["code"] == "engine_failed"
    assert len(events) == 2
    assert b"[DONE]" not in answer.body


async def test_the_official_client_raises_when_an_engine_dies_mid_stream(
    ready: RunningDoor, engine: ScriptedEngine
) -> None:
    engine.script = dying_mid_stream
    async with ready.client() as client:
        stream = await client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "Hel"
        with pytest.raises(openai.APIError, match="ended before its answer did"):
            await anext(stream)


async def test_an_engine_that_dies_before_its_first_byte_is_replaced_once(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    engine.script = dying
    async with ScriptedEngine(answering) as other:
        await routes.applied(routes.push(route(target(engine), target(other, "rep_b"))))
        answers = [await call(ready.port, "POST", CHAT, {**ASKED, "stream": is_s}) for is_s in (True, False) * 5]
    assert [answer.status for answer in answers] == [200] * 10
    assert {answer.header("x-slice-replica") for answer in answers} == {"rep_b"}
    assert engine.exchanges


async def test_two_dead_engines_are_a_502(ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine) -> None:
    engine.script = dying
    async with ScriptedEngine(dying) as other, ScriptedEngine(answering) as third:
        await routes.applied(
            routes.push(route(target(engine), target(other, "rep_b")), route(target(third, "rep_c"), name="x"))
        )
        answer = await call(ready.port, "POST", CHAT, ASKED)
    assert (answer.status, answer.error["code"]) == (502, "engine_failed")
    assert len(engine.exchanges) + len(other.exchanges) == 2


async def test_a_whole_answer_that_breaks_off_is_asked_of_another_replica(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async def half(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{")
        await exchange.line.drained()
        exchange.die()

    engine.script = half
    answer = await call(ready.port, "POST", CHAT, ASKED)
    assert answer.status == 502
    async with ScriptedEngine(answering) as other:
        await routes.applied(routes.push(route(target(engine), target(other, "rep_b"))))
        for _ in range(4):
            assert (await call(ready.port, "POST", CHAT, ASKED)).status == 200


async def test_a_port_where_nobody_listens_is_503_and_passed_over(ready: RunningDoor, routes: RoutesServer) -> None:
    async with ScriptedEngine(answering) as gone:
        pass
    await routes.applied(routes.push(route(target(gone.port))))
    answer = await call(ready.port, "POST", CHAT, ASKED)
    assert (answer.status, answer.error["code"]) == (503, "engine_unreachable")
    assert answer.header("retry-after") == "1"


async def test_a_silent_engine_is_a_504_that_the_sdk_does_not_repeat(
    tmp_path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.closed.wait()

    engine.script = silent
    async with running_door(door_config(tmp_path, first_byte_timeout_s=0.2)) as door:
        await routes.applied(routes.push(route(target(engine))))
        answer = await call(door.port, "POST", CHAT, ASKED)
        assert (answer.status, answer.header("x-should-retry")) == (504, "false")
        async with asyncio.timeout(5):
            await engine.exchanges[0].closed.wait()


async def test_a_stream_that_falls_silent_ends_with_an_error_event(
    tmp_path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async def stalling(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("Hel"))
        await exchange.closed.wait()

    engine.script = stalling
    async with running_door(door_config(tmp_path, idle_timeout_s=0.2)) as door:
        await routes.applied(routes.push(route(target(engine))))
        answer = await call(door.port, "POST", CHAT, {**ASKED, "stream": True})
        assert b'"code":"engine_timeout"' in stream_events(answer.body)[-1]
        async with asyncio.timeout(5):
            await engine.exchanges[0].closed.wait()


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"code":500,"message":"/secret/path.cpp failed","type":"server_error"}}\n\n',
        b'data: {"error": "boom /secret", "error_type": "generation"}\n\n',
        b'error: {"code":500,"message":"/secret"}\n\n',
        b'data: {"object":"error","message":"/secret","code":500}\n\n',
    ],
    ids=["llama.cpp", "TGI", "old llama.cpp", "old vLLM"],
)
async def test_an_error_inside_a_stream_is_put_into_our_words(
    ready: RunningDoor, engine: ScriptedEngine, event: bytes
) -> None:
    async def failing(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("Hel"))
        await exchange.chunk(event)
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end_stream()

    engine.script = failing
    answer = await call(ready.port, "POST", CHAT, {**ASKED, "stream": True})
    events = stream_events(answer.body)
    assert json.loads(events[-1].removeprefix(b"data: "))["error"]["code"] == "engine_failed"
    assert len(events) == 2
    assert b"secret" not in answer.body


async def test_an_overflow_that_comes_as_the_first_event_is_a_plain_400(
    ready: RunningDoor, engine: ScriptedEngine
) -> None:
    async def overflowing(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(b'data: {"error":{"type":"exceed_context_size_error","message":"x"}}\n\n')
        await exchange.end_stream()

    engine.script = overflowing
    answer = await call(ready.port, "POST", CHAT, {**ASKED, "stream": True})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


async def test_a_stream_that_ends_in_order_but_unfinished_is_an_error(
    ready: RunningDoor, engine: ScriptedEngine
) -> None:
    async def truncating(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("Hel"))
        await exchange.end_stream()

    engine.script = truncating
    answer = await call(ready.port, "POST", CHAT, {**ASKED, "stream": True})
    assert b'"code":"engine_failed"' in answer.body
    assert b"[DONE]" not in answer.body


async def test_a_finished_stream_without_done_gets_it(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def undone(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("x", finish="stop"))
        await exchange.end_stream()

    engine.script = undone
    answer = await call(ready.port, "POST", CHAT, {**ASKED, "stream": True})
    assert answer.body == chat_chunk("x", finish="stop") + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x-pad: " + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["another protocol", "bad length", "endless head", "bad chunk"],
)
async def test_nonsense_is_a_502(ready: RunningDoor, engine: ScriptedEngine, data: bytes) -> None:
    async def babbling(exchange: Exchange) -> None:
        await exchange.write(data)

    engine.script = babbling
    answer = await call(ready.port, "POST", CHAT, ASKED)
    assert (answer.status, answer.error["code"]) == (502, "engine_failed")


async def test_bytes_after_a_reply_never_reach_the_next_request(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def splitting(exchange: Exchange) -> None:
        poison = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nPOISON"
        body = chat_answer()
        await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s%s" % (len(body), body, poison))

    engine.script = splitting
    for _ in range(3):
        answer = await call(ready.port, "POST", CHAT, ASKED)
        assert answer.body == chat_answer()
    assert engine.connections == 3


async def test_an_interim_head_is_skipped(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def continuing(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await exchange.reply(chat_answer())

    engine.script = continuing
    assert (await call(ready.port, "POST", CHAT, ASKED)).status == 200
