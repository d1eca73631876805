"""A client that leaves frees its engine at once, in each of the windows of a request; and the counts fall to zero."""

import asyncio
import socket

import pytest

from tests.gateway.conftest import RoutesServer, RunningDoor, route, target
from tests.gateway.raw import request_bytes
from tests.gateway.scripted import Exchange, ScriptedEngine, chat_chunk
from tests.waiting import until_async

CHAT = "/v1/chat/completions"
STREAMED = b'{"model":"smollm2","messages":[{"role":"user","content":"hi"}],"stream":true}'
WHOLE = b'{"model":"smollm2","messages":[{"role":"user","content":"hi"}]}'


async def leave_after(door: RunningDoor, engine: ScriptedEngine, body: bytes, wait_for: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(request_bytes("POST", CHAT, body))
    async with asyncio.timeout(5):
        await engine.arrived.wait()
        if wait_for:
            await reader.readuntil(wait_for)
    assert door.door.balance.in_flight() == {"rep_a": 1}
    writer.transport.abort()


async def is_free(door: RunningDoor, engine: ScriptedEngine) -> None:
    async with asyncio.timeout(1):
        await engine.exchanges[0].closed.wait()

    async def is_zero() -> bool:
        return door.door.balance.in_flight() == {}

    await until_async(is_zero, 1)


async def before_first_byte(exchange: Exchange) -> None:
    await exchange.closed.wait()


async def mid_stream(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.chunk(chat_chunk("Hel"))
    await exchange.closed.wait()


async def mid_whole(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{")
    await exchange.closed.wait()


@pytest.mark.parametrize(
    "script, body, wait_for",
    [
        pytest.param(before_first_byte, STREAMED, b"", id="stream before its first byte"),
        pytest.param(mid_stream, STREAMED, b"Hel", id="mid-stream"),
        pytest.param(before_first_byte, WHOLE, b"", id="whole answer before its head"),
        pytest.param(mid_whole, WHOLE, b"", id="whole answer half way"),
    ],
)
async def test_leaving_closes_the_engines_connection(
    ready: RunningDoor, engine: ScriptedEngine, script, body: bytes, wait_for: bytes
) -> None:
    engine.script = script
    await leave_after(ready, engine, body, wait_for)
    await is_free(ready, engine)


async def test_leaving_while_the_engine_does_not_accept_stops_the_waiting(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    # A full backlog: the kernel answers no SYN, so the connect hangs.
    deaf = socket.socket()
    deaf.bind(("127.0.0.1", 0))
    deaf.listen(0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(deaf.getsockname())
        fillers.append(filler)
    try:
        await routes.applied(routes.push(route(target(deaf.getsockname()[1]))))
        _, writer = await asyncio.open_connection("127.0.0.1", ready.port)
        writer.write(request_bytes("POST", CHAT, WHOLE))

        async def is_busy() -> bool:
            return ready.door.balance.in_flight() == {"rep_a": 1}

        async def is_idle() -> bool:
            return ready.door.balance.in_flight() == {}

        await until_async(is_busy, 1)
        writer.transport.abort()
        await until_async(is_idle, 1)
    finally:
        for one in [deaf, *fillers]:
            one.close()


async def test_a_slow_reader_stops_the_reading_from_its_engine(ready: RunningDoor, engine: ScriptedEngine) -> None:
    sent = 0

    async def flooding(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.begin_stream()
        while not exchange.closed.is_set():
            await exchange.chunk(b"data: " + b"x" * 60_000 + b"\n\n")
            sent += 60_000

    engine.script = flooding
    reader, writer = await asyncio.open_connection("127.0.0.1", ready.port, limit=1024)
    writer.write(request_bytes("POST", CHAT, STREAMED))
    await reader.readuntil(b"\r\n\r\n")

    async def has_stopped() -> bool:
        before = sent
        await asyncio.sleep(0.2)
        return sent == before and sent > 0

    await until_async(has_stopped, 10)
    assert sent < 40_000_000  # kernel buffers and ours, not the engine's whole output
    writer.transport.abort()
    await is_free(ready, engine)
