"""What an OpenAI client gets from a door whose engines behave."""

import asyncio
import json

import openai
import pytest

from tests.gateway.conftest import KEY, RoutesServer, RunningDoor, route, target
from tests.gateway.raw import call
from tests.gateway.scripted import Exchange, ScriptedEngine, chat_answer, chat_chunk
from tests.waiting import until_async

MESSAGES = [{"role": "user", "content": "hi"}]


async def test_the_official_client_gets_a_chat_answer(ready: RunningDoor) -> None:
    async with ready.client() as client:
        answer = await client.chat.completions.create(model="smollm2", messages=MESSAGES)
    assert answer.choices[0].message.content == "hello"
    assert answer.model == "smollm2"


async def test_the_official_client_gets_a_chat_stream(ready: RunningDoor) -> None:
    async with ready.client() as client:
        chunks = [
            c async for c in await client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True)
        ]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello"


async def test_completions_go_to_the_completions_path(ready: RunningDoor, engine: ScriptedEngine) -> None:
    answer = await call(ready.port, "POST", "/v1/completions", {"model": "smollm2", "prompt": "hi"})
    assert answer.status == 200
    assert engine.exchanges[0].path == "/v1/completions"


async def test_embeddings_need_a_route_that_serves_them(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    asked = {"model": "smollm2", "input": "hi"}
    refused = await call(ready.port, "POST", "/v1/embeddings", asked)
    assert (refused.status, refused.error["code"]) == (400, "endpoint_unsupported")
    await routes.applied(routes.push(route(target(engine), endpoints=("embeddings",))))
    assert (await call(ready.port, "POST", "/v1/embeddings", asked)).status == 200


async def test_models_are_listed_and_shown(ready: RunningDoor, routes: RoutesServer) -> None:
    await routes.applied(routes.push(route(name="b"), route(name="a")))
    async with ready.client() as client:
        listed = [model.id async for model in client.models.list()]
        assert listed == ["a", "b"]
        assert (await client.models.retrieve("a")).created == 1_700_000_000
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("aa")
    assert caught.value.code == "model_not_found"


async def test_health_needs_no_key_and_tells_the_table_version(ready: RunningDoor) -> None:
    answer = await call(ready.port, "GET", "/health", headers={"authorization": None})
    assert json.loads(answer.body) == {"status": "ok", "table_version": 1}
    assert (await call(ready.port, "HEAD", "/health")).status == 200


async def test_the_engine_gets_the_clients_bytes_its_own_key_and_no_header_of_the_client(
    ready: RunningDoor, engine: ScriptedEngine
) -> None:
    body = b'{ "model" : "smollm2","messages":[{"role":"user","content":"\\u00e9"}],"unknown":1.50e0}'
    headers = {"x-slice-replica": "evil", "forwarded": "for=1", "cookie": "a=b", "traceparent": "00-1-2-01"}
    await call(ready.port, "POST", "/v1/chat/completions", body, headers)
    got = engine.exchanges[0]
    assert got.body == body
    assert got.headers["authorization"] == "Bearer secret-rep_a"
    assert got.headers["traceparent"] == "00-1-2-01"
    assert not {"x-slice-replica", "forwarded", "cookie", "accept-encoding"} & got.headers.keys()
    assert KEY not in str(got.headers)


async def test_a_different_served_name_is_put_in_and_taken_out_again(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    await routes.applied(routes.push(route(target(engine), name="public", served="/models/x.gguf")))
    async with ready.client() as client:
        answer = await client.chat.completions.create(model="public", messages=MESSAGES)
        stream = await client.chat.completions.create(model="public", messages=MESSAGES, stream=True)
        names = {chunk.model async for chunk in stream}
    assert [one.json["model"] for one in engine.exchanges] == ["/models/x.gguf"] * 2
    assert answer.model == "public"
    assert names == {"public"}


async def test_an_answer_says_how_long_it_took_and_which_replica_gave_it(ready: RunningDoor) -> None:
    answer = await call(ready.port, "POST", "/v1/chat/completions", {"model": "smollm2", "messages": MESSAGES})
    assert answer.header("x-slice-replica") == "rep_a"
    assert int(answer.header("openai-processing-ms")) >= 0
    assert answer.header("x-request-id") is None  # Ray Serve adds it


async def test_a_stream_passes_byte_for_byte(ready: RunningDoor, engine: ScriptedEngine) -> None:
    sent = b": ping\n\n" + chat_chunk("a\u2028b") + b"event: x\r\ndata:  y\r\n\r\n" + chat_chunk("", finish="stop")
    sent += b"data: [DONE]\n\n"

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for at in range(0, len(sent), 7):
            await exchange.chunk(sent[at : at + 7])
        await exchange.end_stream()

    engine.script = script
    answer = await call(
        ready.port, "POST", "/v1/chat/completions", {"model": "smollm2", "messages": MESSAGES, "stream": True}
    )
    assert answer.body == sent
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"


async def test_connections_to_engines_are_reused(ready: RunningDoor, engine: ScriptedEngine) -> None:
    for _ in range(5):
        await call(ready.port, "POST", "/v1/chat/completions", {"model": "smollm2", "messages": MESSAGES})
    assert (len(engine.exchanges), engine.connections) == (5, 1)


async def test_a_stale_connection_costs_the_client_nothing(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def script(exchange: Exchange) -> None:
        if len(engine.exchanges) == 2:
            exchange.die()  # the second request meets a connection that the engine has given up
            return
        await exchange.reply(chat_answer())

    engine.script = script
    asked = {"model": "smollm2", "messages": MESSAGES}
    for _ in range(2):
        assert (await call(ready.port, "POST", "/v1/chat/completions", asked)).status == 200
    assert engine.connections == 2


async def test_a_reply_that_ends_with_its_connection_is_whole(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + chat_answer())
        exchange.hang_up()

    engine.script = script
    answer = await call(ready.port, "POST", "/v1/chat/completions", {"model": "smollm2", "messages": MESSAGES})
    assert answer.body == chat_answer()


async def test_requests_spread_over_replicas_by_their_load(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async def hang(exchange: Exchange) -> None:
        await exchange.closed.wait()

    async with ScriptedEngine(hang) as other:
        engine.script = hang
        await routes.applied(routes.push(route(target(engine), target(other, "rep_b"))))
        async with ready.client() as client:
            tasks = [
                asyncio.ensure_future(client.chat.completions.create(model="smollm2", messages=MESSAGES))
                for _ in range(6)
            ]

            async def is_even() -> bool:
                return ready.door.balance.in_flight() == {"rep_a": 3, "rep_b": 3}

            await until_async(is_even, 5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
