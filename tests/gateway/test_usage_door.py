"""One row a request, from a door on real sockets to a controller that takes it, is away, or comes back."""

import asyncio
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from core.infra.clock import SystemClock
from core.infra.logs import Log
from gateway.usage.report import Pace, Reporter
from gateway.usage.row import Rows
from gateway.usage.spool import Spool
from protos.slice.routes.v1 import routes_pb2
from tests.gateway.conftest import (
    DIALECT,
    KID,
    OTHER_KEY,
    TOKEN,
    RoutesServer,
    RunningDoor,
    door_config,
    route,
    running_door,
    serving_routes,
    target,
)
from tests.gateway.raw import call, request_bytes
from tests.gateway.scripted import Exchange, ScriptedEngine, chat_chunk
from tests.gateway.test_usage_counts import A_KEY, TRACE, a_visit, usage_event
from tests.waiting import until_async

ASKED = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
TELLING = {"fake": replace(DIALECT, tells_stream_usage=True)}.get


async def telling(exchange: Exchange) -> None:
    """An engine that tells a stream's usage when it is asked to."""
    await exchange.begin_stream()
    await exchange.chunk(chat_chunk("Hel") + chat_chunk("lo", finish="stop")[:-1])
    usage = usage_event(5, 2) if exchange.json["stream_options"]["include_usage"] else b""
    await exchange.chunk(b"\n" + usage[:-1])
    await exchange.chunk(usage[-1:] + b"data: [DONE]\n\n")
    await exchange.end_stream()


async def dying_mid_stream(exchange: Exchange) -> None:
    await exchange.begin_stream()
    for piece in ("Hel", "lo", "there"):
        await exchange.chunk(chat_chunk(piece))
    await exchange.line.drained()
    exchange.die()


async def hanging_mid_stream(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.chunk(chat_chunk("Hel"))
    await exchange.closed.wait()


async def test_a_whole_answer_leaves_one_row_that_says_all(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    headers = {"x-request-id": "req-1", "traceparent": f"00-{TRACE}-{'a' * 16}-01"}
    assert (await call(ready.port, "POST", CHAT, ASKED, headers)).status == 200
    (row,) = await routes.used(1)
    assert (row.request_id, row.trace_id, row.kid, row.project) == ("req-1", TRACE, KID, "default")
    assert (row.public_name, row.deployment, row.replica_id, row.endpoint) == ("smollm2", "smollm2", "rep_a", "chat")
    assert (row.outcome, row.code, row.status, row.attempts, row.is_stream) == ("answered", "", 200, 1, False)
    assert (row.input_tokens, row.output_tokens, row.is_estimated) == (1, 1, False)
    assert 0 < row.first_byte_us <= row.total_us < 5_000_000
    assert engine.exchanges[0].headers["traceparent"] == headers["traceparent"]
    assert routes.batches[0].door_id == ready.door.door_id


async def test_an_engine_gets_the_trace_that_the_row_names(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    await call(ready.port, "POST", CHAT, ASKED)
    (row,) = await routes.used(1)
    assert engine.exchanges[0].headers["traceparent"].split("-")[1] == row.trace_id


@pytest.mark.parametrize("wants", [False, True], ids=["not asked", "asked"])
async def test_a_streams_tokens_are_counted_and_shown_only_to_a_client_that_asked(
    tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine, wants: bool
) -> None:
    engine.script = telling
    asked = {**ASKED, "stream": True} | ({"stream_options": {"include_usage": True}} if wants else {})
    async with running_door(door_config(tmp_path), TELLING) as door:
        await routes.applied(routes.push(route(target(engine))))
        answer = await call(door.port, "POST", CHAT, asked)
        (row,) = await routes.used(1)
    shown = chat_chunk("Hel") + chat_chunk("lo", finish="stop")
    assert answer.body == shown + (usage_event(5, 2) if wants else b"") + b"data: [DONE]\n\n"
    assert (row.input_tokens, row.output_tokens, row.cached_tokens, row.is_estimated) == (5, 2, 1, False)
    assert (row.outcome, row.is_stream) == ("answered", True)


async def test_a_stream_that_dies_is_cut_and_estimated(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    engine.script = dying_mid_stream
    await call(ready.port, "POST", CHAT, {**ASKED, "stream": True})
    (row,) = await routes.used(1)
    assert (row.outcome, row.code, row.status) == ("cut", "door.engine_failed", 200)
    assert (row.output_tokens, row.is_estimated) == (3, True)
    assert row.input_tokens > 0


async def test_a_client_that_leaves_its_stream_is_gone_and_estimated(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    engine.script = hanging_mid_stream
    reader, writer = await asyncio.open_connection("127.0.0.1", ready.port)
    writer.write(request_bytes("POST", CHAT, json.dumps({**ASKED, "stream": True}).encode()))
    await reader.readuntil(b"Hel")
    writer.transport.abort()
    (row,) = await routes.used(1)
    assert (row.outcome, row.code, row.output_tokens, row.is_estimated) == ("gone", "client.gone", 1, True)


async def test_a_client_that_leaves_once_it_has_read_the_end_was_answered(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async def lingering(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("Hel", finish="stop") + usage_event(5, 1) + b"data: [DONE]\n\n")
        await exchange.closed.wait()

    engine.script = lingering
    reader, writer = await asyncio.open_connection("127.0.0.1", ready.port)
    writer.write(request_bytes("POST", CHAT, json.dumps({**ASKED, "stream": True}).encode()))
    await reader.readuntil(b"[DONE]")
    writer.transport.abort()
    (row,) = await routes.used(1)
    assert (row.outcome, row.code, row.output_tokens, row.is_estimated) == ("answered", "", 1, False)


async def test_refusals_of_a_known_key_leave_rows_and_nothing_else_does(
    ready: RunningDoor, routes: RoutesServer
) -> None:
    await call(ready.port, "GET", "/health")
    await call(ready.port, "GET", "/v1/models")
    await call(ready.port, "POST", "/v1/nothing", ASKED)
    await call(ready.port, "POST", CHAT, ASKED, {"authorization": f"Bearer {OTHER_KEY}"})
    await call(ready.port, "POST", CHAT, {**ASKED, "model": "no\0pe"})
    await call(ready.port, "POST", CHAT, b"{")
    await call(ready.port, "POST", "/api/chat", b"{")
    found = await routes.used(3)
    assert [(row.public_name, row.outcome, row.code, row.status) for row in found] == [
        ("no?pe", "refused", "registry.model_not_found", 404),
        ("", "refused", "request.invalid_json", 400),
        ("", "refused", "request.invalid_json", 400),
    ]
    assert {(row.input_tokens, row.output_tokens, row.is_estimated) for row in found} == {(0, 0, False)}


async def test_a_request_that_nothing_answers_has_failed(ready: RunningDoor, routes: RoutesServer) -> None:
    await routes.applied(routes.push(route()))
    await call(ready.port, "POST", CHAT, ASKED)
    (row,) = await routes.used(1)
    assert (row.outcome, row.status, row.attempts, row.replica_id) == ("failed", 503, 0, "")


async def test_rows_wait_on_disk_for_a_controller_that_is_away_and_arrive_once(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    routes = RoutesServer()
    socket, spool = tmp_path / "control.sock", tmp_path / "usage"
    async with running_door(door_config(tmp_path)) as door:
        async with serving_routes(socket, routes):
            await routes.applied(routes.push(route(target(engine))))
            await call(door.port, "POST", CHAT, ASKED)
            await routes.used(1)
        for _ in range(5):
            assert (await call(door.port, "POST", CHAT, ASKED)).status == 200

        async def is_on_disk() -> bool:
            return spool.exists() and any(file.stat().st_size for file in spool.iterdir())

        await until_async(is_on_disk, 10)
        async with serving_routes(socket, routes):
            await routes.used(6)
            await call(door.port, "POST", CHAT, ASKED)
            found = await routes.used(7)
    assert len({row.row_id for row in found}) == len(found) == 7
    assert list(spool.iterdir()) == []


async def test_rows_outlive_their_door(tmp_path: Path, engine: ScriptedEngine) -> None:
    routes = RoutesServer()
    socket, spool = tmp_path / "control.sock", tmp_path / "usage"
    async with running_door(door_config(tmp_path)) as first:
        async with serving_routes(socket, routes):
            await routes.applied(routes.push(route(target(engine))))
        await call(first.port, "POST", CHAT, ASKED)
        first_id = first.door.door_id
    assert len(list(spool.iterdir())) == 1
    async with running_door(door_config(tmp_path)), serving_routes(socket, routes):
        await routes.used(1)
    assert routes.batches[-1].door_id == first_id
    assert list(spool.iterdir()) == []


async def test_a_door_that_ends_hands_its_last_rows_over(
    tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async with running_door(door_config(tmp_path)) as door:
        await routes.applied(routes.push(route(target(engine))))
        for _ in range(3):
            await call(door.port, "POST", CHAT, ASKED)
    assert len(routes.usage) == 3


async def test_a_database_that_is_away_keeps_the_rows_and_a_refusal_for_good_gives_them_up(
    ready: RunningDoor, routes: RoutesServer
) -> None:
    routes.usage_code = "storage.unavailable"
    await call(ready.port, "POST", CHAT, ASKED)

    async def was_tried() -> bool:
        return len(routes.batches) >= 2

    await until_async(was_tried, 10)
    assert ready.door.usage.lost == 0
    routes.usage_code = "request.out_of_range"

    async def is_given_up() -> bool:
        return ready.door.usage.lost == 1

    await until_async(is_given_up, 10)
    routes.usage_code = ""
    await call(ready.port, "POST", CHAT, ASKED)
    await routes.used(1)
    assert routes.batches[-1].lost_rows == 1


async def test_a_full_batch_does_not_wait_for_its_time(tmp_path: Path, routes: RoutesServer) -> None:
    reporter = Reporter(
        door_id="door-1",
        target=f"unix:{tmp_path}/control.sock",
        token=TOKEN,
        rows=Rows("seed1234"),
        spool=Spool(tmp_path / "usage", door_id="door-1"),
        clock=SystemClock(),
        log=Log("door", SystemClock(), StringIO()),
        pace=Pace(seconds=3600.0, rows=3),
    )
    visit = a_visit()
    visit.tally.endpoint, visit.caller = "chat", A_KEY
    running = asyncio.ensure_future(reporter.run())
    try:
        for _ in range(8):
            reporter.note(visit)
        await routes.used(6)
        assert [len(batch.rows) for batch in routes.batches] == [3, 3]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await reporter.flush()
    assert [row.row_id for row in routes.usage] == [f"seed1234-{number}" for number in range(1, 9)]


def test_a_batch_fits_into_one_message() -> None:
    text = "x" * 128
    names = [field.name for field in routes_pb2.UsageRow.DESCRIPTOR.fields if field.type == field.TYPE_STRING]
    row = routes_pb2.UsageRow(**dict.fromkeys(names, text))
    assert row.ByteSize() * Pace().rows < 4 * 1024**2
