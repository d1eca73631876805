"""The whole controller with a played node and a played door: from a wish to a route, and back to nothing."""

import asyncio
from pathlib import Path
from typing import Any

import grpc

from core.apikeys import engine_key
from core.infra.grpc import bearer
from protos.slice.node.v1 import node_pb2, node_pb2_grpc
from tests.controller.cluster import NODE, Cluster
from tests.controller.played import PlayedDoor, PlayedNode
from tests.waiting import until_async

SMOL = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


async def deploy_fake(cluster: Cluster, **fields: Any) -> Any:
    return await cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake", **fields})


async def until_state(cluster: Cluster, name: str, state: str) -> Any:
    async def is_there() -> bool:
        return (await cluster.get(f"deployments/{name}"))["state"] == state

    await until_async(is_there, timeout_s=10, what=f"deployment {name} {state}")
    return await cluster.get(f"deployments/{name}")


async def until_gone(cluster: Cluster, name: str) -> None:
    async def is_gone() -> bool:
        return (await cluster.request("GET", f"/api/v1/deployments/{name}"))[0] == 404

    await until_async(is_gone, timeout_s=15, what=f"the end of deployment {name}")


async def test_a_deployment_becomes_a_route_and_goes_when_the_door_has_let_go(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket, obeys=False) as node, PlayedDoor(cluster.socket) as door:
        made = await deploy_fake(cluster)
        assert made["name"] == "fake"
        desired = await node.until_told(lambda told: len(told.replicas) == 1)
        want = desired.replicas[0]
        assert (want.engine, want.desired, want.served_name) == ("fake", "run", "fake")
        assert want.engine_key == engine_key(b"seed", want.replica_id)
        node.generation = desired.generation
        await node.set(want.replica_id, "ready")
        route = await door.until_routed("fake", 1)
        assert route.targets[0].replica_id == want.replica_id
        assert (await until_state(cluster, "fake", "ready"))["ready_replicas"] == 1

        door.loads = {want.replica_id: 1}
        await door.report()
        await cluster.ok("DELETE", "deployments/fake")

        async def is_unrouted() -> bool:
            return door.route("fake") is None

        await until_async(is_unrouted)
        told = await node.until_told(lambda told: told.replicas[0].desired == "drain")
        node.generation = told.generation
        await node.observe()
        assert node.last.replicas[0].desired == "drain", "a stream is in flight"
        door.loads = {}
        await door.report()
        told = await node.until_told(lambda told: told.replicas[0].desired == "stop")
        node.generation = told.generation
        await node.set(want.replica_id, "stopped")
        await until_gone(cluster, "fake")
        events = [event["kind"] for event in (await cluster.get("events?limit=1000"))["items"]]
        for kind in ("deployment_created", "replica_placed", "replica_ready", "replica_drain", "deployment_deleted"):
            assert kind in events


async def test_a_pull_registers_a_model_that_can_be_deployed(cluster: Cluster) -> None:
    pull = await cluster.ok("POST", "pulls", {"name": "smollm2"})
    assert pull["state"] == "queued"
    assert "no node" in (await cluster.get(f"pulls/{pull['id']}"))["waiting"]
    async with PlayedNode(cluster.socket) as node:
        told = await node.until_told(lambda told: len(told.files) == 1)
        assert told.files[0].want_id == pull["id"]
        assert told.files[0].sha256 == SMOL
        await node.finish_pull(pull["id"], SMOL)

        async def is_done() -> bool:
            return (await cluster.get(f"pulls/{pull['id']}"))["state"] == "done"

        await until_async(is_done)
        model = await cluster.get("models/smollm2")
        assert model["versions"][0]["parameters"] == 134515008
        assert model["versions"][0]["files"][0]["nodes"] == ["box"]
        again = await cluster.request("POST", "/api/v1/pulls", {"name": "smollm2"})
        assert (again[0], again[1]["state"]) == (200, "done")
        made = await cluster.ok("POST", "deployments", {"model": "smollm2"})
        assert made["engine"] == "llamacpp"
        want = (await node.until_told(lambda told: len(told.replicas) == 1)).replicas[0]
        assert want.files[0].sha256 == SMOL
        await until_state(cluster, "smollm2", "ready")


async def test_a_restarted_controller_keeps_the_routes_before_the_node_is_back(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
        before = (await cluster.get("routes"))["version"]
        await node.hang_up()
        await cluster.stop()
        await cluster.start()
        await cluster.ready()

        async def is_published() -> bool:
            return bool((await cluster.get("routes"))["items"])

        await until_async(is_published)
        after = await cluster.get("routes")
        assert len(after["items"][0]["targets"]) == 1
        assert after["version"] > before
        waiting = (await cluster.get("deployments/fake"))["waiting"]
        assert "node box has not connected since" in waiting
        await node.dial()
        assert (await until_state(cluster, "fake", "ready"))["ready_replicas"] == 1
        assert len(node.replicas) == 1


async def test_a_node_silent_past_its_lease_is_unrouted_and_routed_again_when_it_returns(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node, PlayedDoor(cluster.socket) as door:
        await deploy_fake(cluster)
        await door.until_routed("fake", 1)
        node.is_beating = False
        await door.until_routed("fake", 0)
        assert (await cluster.get("nodes/box"))["state"] == "lost"
        node.is_beating = True
        await door.until_routed("fake", 1)
        assert len((await cluster.get("replicas"))["items"]) == 1


async def test_scaling_keeps_replicas_and_new_settings_replace_them(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node, PlayedDoor(cluster.socket):
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
        first = {item["id"] for item in (await cluster.get("replicas"))["items"]}
        await cluster.ok("PATCH", "deployments/fake", {"replicas": 2})

        async def are_two() -> bool:
            return (await cluster.get("deployments/fake"))["ready_replicas"] == 2

        await until_async(are_two)
        assert first < {item["id"] for item in (await cluster.get("replicas"))["items"]}
        await cluster.ok("PATCH", "deployments/fake", {"settings": {"tokens": 3}, "if_generation": 2})

        async def are_new() -> bool:
            items = (await cluster.get("replicas"))["items"]
            return len(items) == 2 and not first & {item["id"] for item in items}

        await until_async(are_new, timeout_s=25)
        status, body = await cluster.request("PATCH", "/api/v1/deployments/fake", {"replicas": 1, "if_generation": 1})
        assert (status, body["error"]["code"]) == (409, "deployment.version_conflict")
        assert node.reject is None


async def test_a_deployment_without_a_node_says_why(cluster: Cluster) -> None:
    await deploy_fake(cluster)

    async def is_refused() -> bool:
        return (await cluster.get("deployments/fake"))["refusal"] is not None

    await until_async(is_refused)
    shown = await cluster.get("deployments/fake")
    assert shown["state"] == "waiting"
    assert shown["waiting"] == shown["refusal"]["message"]


async def test_drain_ends_at_its_timeout_when_a_door_never_lets_go(url: str, runtime: Path) -> None:
    async with Cluster(url, runtime, drain_timeout_s=0.5) as cluster:
        await cluster.ready()
        async with PlayedNode(cluster.socket), PlayedDoor(cluster.socket) as door:
            await deploy_fake(cluster)
            await door.until_routed("fake", 1)
            door.applies = False
            await cluster.ok("DELETE", "deployments/fake")
            await until_gone(cluster, "fake")


async def test_deleting_a_model_by_force_takes_its_deployment_with_it(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket), PlayedDoor(cluster.socket):
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
        status, body = await cluster.request("DELETE", "/api/v1/models/fake")
        assert (status, body["error"]["code"]) == (409, "registry.model_in_use")
        assert (await cluster.request("DELETE", "/api/v1/models/fake?force=true"))[0] == 204
        assert (await cluster.get("models"))["items"] == []
        await until_gone(cluster, "fake")

        async def can_again() -> bool:
            status, _ = await cluster.request("POST", "/api/v1/deployments", {"model": "fake", "engine": "fake"})
            return status == 201

        await until_async(can_again)


async def test_logs_are_relayed_and_an_absent_node_is_an_error(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
        replica = (await cluster.get("replicas"))["items"][0]["id"]
        asked = asyncio.create_task(cluster.request("GET", f"/api/v1/replicas/{replica}/logs?tail=5"))

        async def is_asked() -> bool:
            return bool(node.logs)

        await until_async(is_asked)
        request_id = node.logs[0].request_id
        assert node.logs[0].tail_lines == 5

        async def chunks() -> Any:
            yield node_pb2.LogChunk(request_id=request_id, text=b"one\n")
            yield node_pb2.LogChunk(request_id=request_id, text=b"two\n", is_last=True)

        async with grpc.aio.insecure_channel(f"unix:{cluster.socket}") as channel:
            stub: Any = node_pb2_grpc.NodeControlStub(channel)
            await stub.SendLog(chunks(), metadata=bearer(NODE))
        assert await asked == (200, "one\ntwo\n")
        await node.hang_up()

        async def is_away() -> bool:
            status, body = await cluster.request("GET", f"/api/v1/replicas/{replica}/logs")
            return status == 503 and body["error"]["code"] == "replica.logs_unavailable"

        await until_async(is_away)
