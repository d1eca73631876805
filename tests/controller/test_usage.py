"""Usage in the real database: each row once, summed up by what people ask for, from a real call of a door."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from controller.api.usage_wire import MAX_ROWS, rows_of
from controller.usage.model import By, UsageRow
from controller.usage.service import Usage
from core.errors import Failure
from core.infra import postgres
from core.infra.clock import SystemClock
from core.infra.grpc import bearer
from core.states import Outcome
from protos.slice.routes.v1 import routes_pb2, routes_pb2_grpc
from tests.controller.cluster import DOOR, Cluster
from tests.controller.played import PlayedNode
from tests.postgres import Server
from tests.waiting import until_async

DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)


def row(number: int, **more: Any) -> UsageRow:
    made = UsageRow(
        row_id=f"row-{number:08d}",
        door_id="door-1",
        request_id=f"req-{number}",
        trace_id="a" * 32,
        kid="k1",
        project="default",
        public_name="chat",
        arm="",
        model="smollm2",
        version=1,
        deployment="smollm2",
        replica_id="rep_1",
        node_id="node_1",
        endpoint="chat",
        is_stream=False,
        outcome=Outcome.ANSWERED,
        code="",
        status=200,
        input_tokens=10,
        output_tokens=5,
        cached_tokens=2,
        is_estimated=False,
        started_at=DAY,
        first_byte_s=0.1,
        total_s=0.5,
        attempts=1,
    )
    return replace(made, **more)


def wire(row_id: str, **more: Any) -> routes_pb2.UsageRow:
    now_us = round(datetime.now(UTC).timestamp() * 1e6)
    values = {"row_id": row_id, "outcome": "answered", "status": 200, "kid": "k1", "started_unix_us": now_us}
    return routes_pb2.UsageRow(**{**values, **more})


@pytest.fixture
def usage(database: postgres.Database) -> Usage:
    return Usage(database=database, clock=SystemClock())


async def sums(usage: Usage, by: By) -> dict[str, tuple[int, int, int]]:
    found = await usage.sums(by, since=DAY - timedelta(days=9), until=DAY + timedelta(days=9))
    return {one.group: (one.requests, one.input_tokens, one.output_tokens) for one in found}


async def test_a_row_that_comes_twice_is_one_row(usage: Usage) -> None:
    assert await usage.take([row(1), row(2)]) == 2
    assert await usage.take([row(2, input_tokens=99), row(3)]) == 1
    assert await sums(usage, By.KEY) == {"k1": (3, 30, 15)}


async def test_rows_are_summed_up_by_each_of_what_they_name(usage: Usage) -> None:
    await usage.take(
        [
            row(1),
            row(2, kid="k2", project="other", node_id="node_2"),
            row(3, model="qwen", deployment="qwen-big", started_at=DAY - timedelta(days=1)),
            row(4, model="", deployment="", node_id="", outcome=Outcome.REFUSED, input_tokens=0, output_tokens=0),
        ]
    )
    assert await sums(usage, By.KEY) == {"k1": (3, 20, 10), "k2": (1, 10, 5)}
    assert await sums(usage, By.PROJECT) == {"default": (3, 20, 10), "other": (1, 10, 5)}
    assert await sums(usage, By.MODEL) == {"smollm2": (2, 20, 10), "qwen": (1, 10, 5), "": (1, 0, 0)}
    assert await sums(usage, By.DEPLOYMENT) == {"smollm2": (2, 20, 10), "qwen-big": (1, 10, 5), "": (1, 0, 0)}
    assert await sums(usage, By.NODE) == {"node_1": (2, 20, 10), "node_2": (1, 10, 5), "": (1, 0, 0)}
    assert list((await sums(usage, By.DAY)).items()) == [("2026-02-28", (1, 10, 5)), ("2026-03-01", (3, 20, 10))]


async def test_how_requests_ended_is_counted_apart(usage: Usage) -> None:
    ends = [*Outcome, Outcome.CUT]
    await usage.take([row(number, outcome=end, is_estimated=end == "cut") for number, end in enumerate(ends)])
    (one,) = await usage.sums(By.KEY, since=DAY, until=DAY + timedelta(seconds=1))
    assert (one.answered, one.refused, one.failed, one.cut, one.gone, one.estimated) == (1, 1, 1, 2, 1, 2)
    assert (one.cached_tokens, one.total_s) == (12, 3.0)


async def test_a_time_holds_its_beginning_and_not_its_end(usage: Usage) -> None:
    await usage.take([row(1), row(2, started_at=DAY + timedelta(hours=1))])
    assert [one.requests for one in await usage.sums(By.KEY, since=DAY, until=DAY + timedelta(hours=1))] == [1]
    assert await usage.sums(By.KEY, since=DAY + timedelta(hours=2), until=DAY + timedelta(hours=3)) == []


async def test_a_batch_of_five_hundred_is_one_statement(usage: Usage) -> None:
    assert await usage.take([row(number) for number in range(500)]) == 500


def test_hostile_rows_are_cut_to_bounds_or_left_out() -> None:
    batch = routes_pb2.UsageBatch(
        door_id="d" * 999,
        rows=[
            wire("x"),
            wire("row-00000001", outcome="eaten"),
            wire("row-00000002", started_unix_us=-(2**62)),
            wire("row 00000003"),
            wire(
                "row-00000004",
                status=4_000_000_000,
                version=4_000_000_000,
                attempts=4_000_000_000,
                input_tokens=2**64 - 1,
                total_us=2**64 - 1,
                public_name="a\0b" * 200,
            ),
            wire("row-00000004"),
            wire("row-00000005"),
        ],
    )
    first, second = rows_of(batch)
    assert (first.row_id, second.row_id, len(second.door_id)) == ("row-00000004", "row-00000005", 128)
    with pytest.raises(Failure):
        rows_of(routes_pb2.UsageBatch(rows=[wire("row-00000006")] * (MAX_ROWS + 1)))


async def test_rows_at_every_bound_fit_into_the_table(usage: Usage) -> None:
    most = 2**64 - 1
    far = wire(
        "r" * 64,
        status=2**32 - 1,
        version=2**32 - 1,
        attempts=2**32 - 1,
        input_tokens=most,
        output_tokens=most,
        cached_tokens=most,
        first_byte_us=most,
        total_us=most,
        public_name="\0é😀" * 99,
        started_unix_us=0,
    )
    assert await usage.take(rows_of(routes_pb2.UsageBatch(door_id="\0", rows=[far]))) == 1


async def report(cluster: Cluster, *rows: routes_pb2.UsageRow, **more: Any) -> routes_pb2.UsageReceipt:
    async with grpc.aio.insecure_channel(f"unix:{cluster.socket}") as channel:
        stub = routes_pb2_grpc.RoutesStub(channel)
        batch = routes_pb2.UsageBatch(door_id="door-1", rows=rows, **more)
        return await stub.ReportUsage(batch, metadata=bearer(DOOR), timeout=15)


async def test_what_a_door_reports_is_what_the_api_shows(cluster: Cluster) -> None:
    made = await cluster.ok("POST", "keys", {"name": "app"})
    told = wire("row-00000001", kid=made["kid"], input_tokens=7, output_tokens=3, total_us=1_500_000)
    for _ in range(2):
        assert not (await report(cluster, told, wire("row-00000002", kid="gone"))).code
    answer = await cluster.get("usage?by=key")
    assert answer["by"] == "key"
    first, second = sorted(answer["items"], key=lambda one: str(one["name"]))
    assert first == {
        "group": made["kid"],
        "name": "app",
        "requests": 1,
        "answered": 1,
        "refused": 0,
        "failed": 0,
        "cut": 0,
        "gone": 0,
        "input_tokens": 7,
        "output_tokens": 3,
        "cached_tokens": 0,
        "estimated": 0,
        "total_s": 1.5,
    }
    assert (second["group"], second["name"]) == ("gone", "gone")
    page = (await cluster.request("GET", "/metrics"))[1]
    assert "slice_usage_rows_total 2.0" in page


async def test_the_node_of_a_replica_beside_its_door_is_looked_up(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket):
        await cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake"})

        async def replicas() -> Any:
            return (await cluster.get("replicas"))["items"]

        await until_async(replicas)
        (replica,) = await replicas()
        await report(cluster, wire("row-00000001", replica_id=replica["id"]))
        (one,) = (await cluster.get("usage?by=node"))["items"]
        assert (one["name"], one["requests"]) == (replica["node"], 1)


async def test_rows_that_a_door_gave_up_are_counted(cluster: Cluster) -> None:
    assert not (await report(cluster, lost_rows=12)).code
    assert "slice_usage_lost_total 12.0" in (await cluster.request("GET", "/metrics"))[1]
    assert '"usage_lost"' in cluster.log.getvalue()


async def test_a_batch_that_the_database_cannot_take_is_answered_so(server: Server, cluster: Cluster) -> None:
    await asyncio.to_thread(server.stop)
    try:
        assert (await report(cluster, wire("row-00000001"))).code == "storage.unavailable"
    finally:
        await asyncio.to_thread(server.start)
