"""The line to the controller: tables in, reports out, over restarts of either side."""

import asyncio
import stat
from itertools import pairwise
from pathlib import Path

import pytest

from core.errors import Failure
from gateway.table import load_copy, save_copy
from protos.slice.routes.v1 import routes_pb2
from tests.gateway.conftest import (
    RoutesServer,
    RunningDoor,
    door_config,
    key_entry,
    route,
    running_door,
    serving_routes,
    target,
)
from tests.gateway.raw import call
from tests.gateway.scripted import Exchange, ScriptedEngine, answering
from tests.waiting import until_async

ASKED = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


async def test_a_new_table_is_applied_and_reported_within_two_seconds(ready: RunningDoor, routes: RoutesServer) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    version = routes.push(route(name="other"))
    await routes.applied(version)
    at = next(at for at, report in routes.reports if report.applied_version == version)
    assert at - began < 0.5
    assert (await call(ready.port, "POST", CHAT, ASKED)).status == 404


async def test_reports_come_at_least_every_second(ready: RunningDoor, routes: RoutesServer) -> None:
    seen = len(routes.reports)

    async def has_three() -> bool:
        return len(routes.reports) >= seen + 3

    await until_async(has_three, 5)
    times = [at for at, _ in routes.reports[seen:]]
    assert max(later - earlier for earlier, later in pairwise(times)) < 1.2


async def test_a_report_counts_what_each_replica_works_on_even_when_it_left_the_table(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async def hanging(exchange: Exchange) -> None:
        await exchange.closed.wait()

    engine.script = hanging
    asking = asyncio.ensure_future(call(ready.port, "POST", CHAT, ASKED))
    await engine.arrived.wait()
    await routes.applied(routes.push(route(waiting="moving")))
    assert [(load.replica_id, load.in_flight) for load in routes.last.loads] == [("rep_a", 1)]
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    async def is_gone() -> bool:
        return not routes.last.loads

    await until_async(is_gone, 0.6, "the leaver's last report, sooner than the next regular one")


async def test_an_unmet_request_is_reported_once_as_demand(ready: RunningDoor, routes: RoutesServer) -> None:
    await routes.applied(routes.push(route(waiting="asleep")))
    await call(ready.port, "POST", CHAT, ASKED)

    async def is_reported() -> bool:
        return sum(report.demand.get("smollm2", 0) for _, report in routes.reports) == 1

    await until_async(is_reported, 3)


async def test_the_door_serves_on_while_the_controller_is_away_and_finds_it_again(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    first = RoutesServer()
    async with running_door(door_config(tmp_path)) as door:
        async with serving_routes(tmp_path / "control.sock", first):
            await first.applied(first.push(route(target(engine))))
        assert (await call(door.port, "POST", CHAT, ASKED)).status == 200
        second = RoutesServer()
        second.table.version = 7
        async with serving_routes(tmp_path / "control.sock", second):
            await second.applied(second.push(route(target(engine), name="renamed")))
            assert (await call(door.port, "POST", CHAT, {**ASKED, "model": "renamed"})).status == 200
        assert "controller_lost" in door.logged.getvalue()


async def test_a_restarted_door_serves_from_its_last_copy_without_a_controller(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    config, routes = door_config(tmp_path), RoutesServer()
    async with serving_routes(tmp_path / "control.sock", routes), running_door(config):
        await routes.applied(routes.push(route(target(engine))))

        async def is_saved() -> bool:
            return Path(config.table_file).exists()

        await until_async(is_saved, 3)
    assert stat.S_IMODE(Path(config.table_file).stat().st_mode) == 0o600
    async with running_door(config) as door:
        assert (await call(door.port, "POST", CHAT, ASKED)).status == 200


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "table": "%"}', '{"format":1,"table":"AAAA"}']
)
async def test_a_broken_copy_is_logged_and_forgotten(tmp_path: Path, text: str) -> None:
    config = door_config(tmp_path)
    Path(config.table_file).write_text(text)
    with pytest.raises(Failure, match="cannot be read"):
        load_copy(Path(config.table_file))
    async with running_door(config) as door:
        assert (await call(door.port, "GET", "/v1/models")).status == 503
        assert "table_copy_unreadable" in door.logged.getvalue()


async def test_a_controller_that_refuses_the_token_leaves_the_door_serving(
    tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    config = door_config(tmp_path, token="wrong")
    table = routes_pb2.RouteTable(version=3, routes=[route(target(engine))])
    table.keys.append(key_entry())
    save_copy(Path(config.table_file), table)
    async with running_door(config) as door:

        async def is_logged() -> bool:
            return "UNAUTHENTICATED" in door.logged.getvalue()

        await until_async(is_logged, 3)
        assert (await call(door.port, "POST", CHAT, ASKED)).status == 200


async def test_a_new_incarnation_on_the_same_port_gets_no_old_connection(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    engine.script = answering
    await call(ready.port, "POST", CHAT, ASKED)
    await routes.applied(routes.push(route(target(engine, incarnation=2))))
    await call(ready.port, "POST", CHAT, ASKED)
    assert engine.connections == 2
