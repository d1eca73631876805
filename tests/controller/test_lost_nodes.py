"""What a lost node means for what was placed on it: played nodes, a real controller, a real PostgreSQL that goes."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp

from tests.controller.cluster import Cluster
from tests.controller.played import PlayedNode
from tests.postgres import Server
from tests.waiting import until_async

LOST_S = 3.8  # of a heartbeat of 0.2 s


async def until(cluster: Cluster, path: str, holds: Callable[[Any], bool], *, timeout_s: float = 10.0) -> Any:
    found: list[Any] = []

    async def does() -> bool:
        found[:] = [await cluster.get(path)]
        return holds(found[0])

    await until_async(does, timeout_s=timeout_s, what=path)
    return found[0]


async def replicas(cluster: Cluster) -> list[tuple[str, str]]:
    return sorted((one["node"], one["state"]) for one in (await cluster.get("replicas"))["items"])


async def until_replicas(cluster: Cluster, *expected: tuple[str, str]) -> None:
    async def are() -> bool:
        return await replicas(cluster) == sorted(expected)

    await until_async(are, timeout_s=15, what=f"the replicas {expected}")


async def kinds(cluster: Cluster) -> list[str]:
    return [event["kind"] for event in (await cluster.get("events?limit=1000"))["items"]]


async def test_a_lost_replica_is_replaced_and_the_serving_replacement_stays_when_its_node_returns(
    cluster: Cluster,
) -> None:
    async with (
        PlayedNode(cluster.socket) as first,
        PlayedNode(cluster.socket, node_id="nod_2", name="second", machine_id="m2"),
    ):
        await until(cluster, "nodes", lambda body: len(body["items"]) == 2)
        await cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake"})
        await until_replicas(cluster, ("box", "ready"))
        first.is_beating = False
        # Its promise stands beside the replacement's: nobody knows whether its engine has ended.
        await until_replicas(cluster, ("box", "lost"), ("second", "ready"))
        first.is_beating = True
        await until_replicas(cluster, ("second", "ready"))


async def test_the_original_is_kept_when_its_node_returns_before_the_replacement_serves(cluster: Cluster) -> None:
    async with (
        PlayedNode(cluster.socket) as first,
        PlayedNode(cluster.socket, node_id="nod_2", name="second", machine_id="m2") as second,
    ):
        await until(cluster, "nodes", lambda body: len(body["items"]) == 2)
        await cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake"})
        await until_replicas(cluster, ("box", "ready"))
        second.obeys = False
        first.is_beating = False
        await until_replicas(cluster, ("box", "lost"), ("second", "assigned"))
        first.is_beating = True

        async def is_cancelled() -> bool:
            return ("box", "ready") in await replicas(cluster) and [
                one["desired"] for one in (await cluster.get("replicas"))["items"] if one["node"] == "second"
            ] in ([], ["stop"])

        await until_async(is_cancelled, timeout_s=15)
        second.obeys = True


async def test_what_was_promised_on_a_lost_node_is_not_free_until_the_node_says_so(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake"})
        await until_replicas(cluster, ("box", "ready"))
        await node.hang_up()
        await until_replicas(cluster, ("box", "lost"))
        await cluster.ok("DELETE", "deployments/fake")
        await until(cluster, "replicas", lambda body: [one["desired"] for one in body["items"]] == ["stop"])
        # Several passes later the row is still there: a silence has freed nothing.
        await cluster.ok("POST", "keys", {"name": "pass"})
        assert await replicas(cluster) == [("box", "lost")]
        await node.dial()
        await until_replicas(cluster)
        assert (await cluster.get("deployments"))["items"] == []


async def test_when_all_nodes_fall_silent_nothing_is_moved_and_status_says_so_until_they_are_back(
    cluster: Cluster,
) -> None:
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                PlayedNode(cluster.socket, node_id=f"nod_{number}", name=f"n{number}", machine_id=f"m{number}")
            )
            for number in range(5)
        ]
        await until(cluster, "nodes", lambda body: len(body["items"]) == 5)
        await cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake", "replicas": 5})
        await until_replicas(cluster, *((f"n{number}", "ready") for number in range(5)))
        for node in nodes[:3]:
            node.is_beating = False
        body = await until(cluster, "status", lambda body: bool(body["brake"]))
        assert "of 5 nodes are lost at once" in body["brake"]
        await until(cluster, "nodes", lambda body: [one["state"] for one in body["items"]].count("lost") == 3)
        assert len(await replicas(cluster)) == 5
        for node in nodes[:3]:
            node.is_beating = True
        await until(cluster, "status", lambda body: not body["brake"])
        await until_replicas(cluster, *((f"n{number}", "ready") for number in range(5)))
        found = await kinds(cluster)
        assert (found.count("node_brake"), found.count("node_brake_released")) == (1, 1)


async def test_an_operator_who_releases_the_brake_gets_replacements(cluster: Cluster) -> None:
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                PlayedNode(cluster.socket, node_id=f"nod_{number}", name=f"n{number}", machine_id=f"m{number}")
            )
            for number in range(4)
        ]
        await until(cluster, "nodes", lambda body: len(body["items"]) == 4)
        await cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake", "replicas": 4})
        await until_replicas(cluster, *((f"n{number}", "ready") for number in range(4)))
        for node in nodes[:3]:
            node.is_beating = False
        await until(cluster, "nodes", lambda body: [one["state"] for one in body["items"]].count("lost") == 3)
        assert (await cluster.ok("POST", "brake/release"))["was_on"] is True
        await until(cluster, "replicas", lambda body: [one["node"] for one in body["items"]].count("n3") == 4)


async def test_a_copied_identity_is_told_of(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket):
        await until(cluster, "nodes", lambda body: len(body["items"]) == 1)
        async with PlayedNode(cluster.socket, machine_id="m2") as copy:

            async def is_refused() -> bool:
                return copy.reject is not None and copy.reject.is_fatal

            await until_async(is_refused)

        async def is_told() -> bool:
            return "node_identity_conflict" in await kinds(cluster)

        await until_async(is_told)


async def test_nothing_is_lost_while_the_database_is_away_longer_than_a_lease(server: Server, cluster: Cluster) -> None:
    async with (
        PlayedNode(cluster.socket) as first,
        PlayedNode(cluster.socket, node_id="nod_2", name="second", machine_id="m2") as second,
    ):
        await until(cluster, "nodes", lambda body: len(body["items"]) == 2)
        await cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake", "replicas": 2})
        await until_replicas(cluster, ("box", "ready"), ("second", "ready"))
        await asyncio.to_thread(server.stop)
        try:
            async with asyncio.timeout(30):
                # One goes on beating, the other loses its stream and cannot be taken back without a database.
                await second.hang_up()
                loop = asyncio.get_running_loop()
                end = loop.time() + 3 * LOST_S
                answers = []
                while loop.time() < end:
                    await second.dial()
                    answers.append(await cluster.request("POST", "/api/v1/keys", {"name": "k"}))
                    targets = (await cluster.get("routes"))["items"][0]["targets"]
                    assert len(targets) == 2  # the doors' table stands
                    await second.hang_up()
                assert {(status, body["error"]["code"]) for status, body in answers} == {(503, "storage.unavailable")}
        finally:
            await asyncio.to_thread(server.start)
        await second.dial()

        async def is_back() -> bool:
            return (await cluster.request("GET", "/api/v1/status"))[0] == 200

        await until_async(is_back, timeout_s=15)
        await until(cluster, "nodes", lambda body: {one["state"] for one in body["items"]} == {"ready"})
        assert await replicas(cluster) == [("box", "ready"), ("second", "ready")]
        assert "node_lost" not in await kinds(cluster)
        assert len(first.desired) <= 3
        await second.hang_up()


async def test_a_write_without_a_database_says_when_to_come_again(server: Server, cluster: Cluster) -> None:
    await asyncio.to_thread(server.stop)
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{cluster.base}/api/v1/keys", json={"name": "k"}, headers={"Authorization": "Bearer operator-token"}
            ) as answer,
        ):
            assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
    finally:
        await asyncio.to_thread(server.start)
