"""Files of a version from node to node through a whole controller: where they are, copies, moves, what may leave."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from protos.slice.node.v1 import node_pb2 as pb
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedNode
from tests.controller.test_store_collection import hold, own, sha
from tests.waiting import until_async


@contextlib.asynccontextmanager
async def two(cluster: Cluster) -> AsyncIterator[tuple[PlayedNode, PlayedNode]]:
    """Play two nodes that reach each other; the first has a model `mine`."""
    first = PlayedNode(cluster.socket, node_id="nod_1", name="box", machine_id="m1")
    second = PlayedNode(cluster.socket, node_id="nod_2", name="other", machine_id="m2")
    first.plane, second.plane = ("10.0.0.1", 7001), ("10.0.0.2", 7002)
    second.disk_free_bytes = 1
    async with first, second:
        await own(cluster, first, "mine", "a")
        yield first, second


async def where(cluster: Cluster, name: str = "mine") -> dict[str, Any]:
    return {item["node"]: item for item in (await cluster.get(f"models/{name}/where"))["items"]}


async def until_ended(cluster: Cluster, copy_id: str, state: str) -> Any:
    async def has_ended() -> bool:
        return (await cluster.get(f"pulls/{copy_id}"))["state"] == state

    await until_async(has_ended, what=f"a copy that is {state}")
    return await cluster.get(f"pulls/{copy_id}")


def wanted(node: PlayedNode, copy_id: str) -> pb.FileWant | None:
    return next((one for one in node.desired[-1].files if one.want_id == f"{copy_id}.0"), None)


async def arrive(node: PlayedNode, copy_id: str, letter: str = "a") -> None:
    """Let a file of a copy come."""
    await node.until_told(lambda told: any(one.want_id.startswith(copy_id) for one in told.files))
    await hold(node, letter)


async def test_where_a_models_files_are_is_shown_for_each_node(cluster: Cluster) -> None:
    async with two(cluster):
        assert list(await where(cluster)) == ["box"]
        found = (await where(cluster))["box"]
        assert (found["version"], found["files"], found["files_total"], found["is_whole"]) == (1, 1, 1, True)
        assert (found["size_bytes"], found["used_by"], found["is_coming"]) == (100, [], False)
        assert (await cluster.request("GET", "/api/v1/models/mine/where?version=7"))[0] == 404


async def test_a_copy_is_a_pull_that_names_peers_and_is_done_when_the_node_has_it(cluster: Cluster) -> None:
    async with two(cluster) as (_, second):
        made = await cluster.ok("POST", "models/mine/copies", {"to": "other"})
        assert (made["node"], made["model"], made["version"], made["from"]) == ("other", "mine", 1, None)
        assert made["bytes_total"] == 100
        await second.until_told(lambda told: bool(told.files))
        order = wanted(second, made["id"])
        assert order is not None
        assert [(peer.node_id, peer.host, peer.port) for peer in order.peers] == [("nod_1", "10.0.0.1", 7001)]
        assert (order.sha256, order.source, order.path) == (sha("a"), "file:/models/a.gguf", "a.gguf")

        second.files["coming"] = pb.FileReport(want_id=order.want_id, state="running", bytes_done=40, bytes_total=100)
        await second.observe()

        async def is_shown() -> bool:
            found = await cluster.get(f"pulls/{made['id']}")
            return (found["state"], found["bytes_done"], found["waiting"]) == ("running", 40, "")

        await until_async(is_shown)
        assert (await where(cluster))["other"]["is_coming"]
        assert made["id"] in [one["id"] for one in (await cluster.get("pulls"))["items"]]
        again = await cluster.ok("POST", "models/mine/copies", {"to": "other"})
        assert again["id"] == made["id"], "the same copy, not a second one"

        del second.files["coming"]
        await arrive(second, made["id"])
        done = await until_ended(cluster, made["id"], "done")
        assert (done["bytes_done"], done["error"]) == (100, None)
        await second.until_told(lambda told: not told.files)
        assert (await where(cluster))["other"]["is_whole"]
        status, third = await cluster.request("POST", "/api/v1/models/mine/copies", {"to": "other"})
        assert (status, third["state"]) == (200, "done")


async def test_a_copy_that_a_node_cannot_bring_says_why(cluster: Cluster) -> None:
    async with two(cluster) as (_, second):
        made = await cluster.ok("POST", "models/mine/copies", {"to": "other"})
        await second.until_told(lambda told: bool(told.files))
        second.files["bad"] = pb.FileReport(
            want_id=f"{made['id']}.0", state="failed", code="disk.full", message="the disk is full"
        )
        await second.observe()
        failed = await until_ended(cluster, made["id"], "failed")
        assert failed["error"] == {"code": "disk.full", "message": "the disk is full", "hint": ""}
        await second.until_told(lambda told: not told.files)


async def test_a_cancelled_copy_is_no_longer_wanted(cluster: Cluster) -> None:
    async with two(cluster) as (_, second):
        made = await cluster.ok("POST", "models/mine/copies", {"to": "other"})
        await second.until_told(lambda told: bool(told.files))
        assert (await cluster.ok("DELETE", f"pulls/{made['id']}"))["state"] == "cancelled"
        await second.until_told(lambda told: not told.files)
        assert (await cluster.ok("DELETE", f"pulls/{made['id']}"))["state"] == "cancelled", "again changes nothing"


async def test_a_move_takes_the_files_off_the_first_node_when_the_second_has_them(cluster: Cluster) -> None:
    async with two(cluster) as (first, second):
        made = await cluster.ok("POST", "models/mine/copies", {"to": "other", "from": "box"})
        assert made["from"] == "box"
        assert not first.desired[-1].removed_files
        await arrive(second, made["id"])
        await until_ended(cluster, made["id"], "done")
        await first.until_told(lambda told: list(told.removed_files) == [sha("a")])
        del first.files[sha("a")]
        await first.observe()

        async def has_moved() -> bool:
            return list(await where(cluster)) == ["other"]

        await until_async(has_moved)
        await first.until_told(lambda told: not told.removed_files)


async def test_the_last_copy_stays(cluster: Cluster) -> None:
    async with two(cluster) as (first, _):
        status, answer = await cluster.request("DELETE", "/api/v1/models/mine/nodes/box")
        assert (status, answer["error"]["code"]) == (409, "registry.last_copy")
        assert not first.desired[-1].removed_files


async def test_files_are_taken_off_a_node_while_another_has_them(cluster: Cluster) -> None:
    async with two(cluster) as (first, second):
        await cluster.ok("POST", "models/mine/copy", {"to": "twin"})
        await hold(second, "a")

        async def both() -> bool:
            return len(await where(cluster)) == 2

        await until_async(both)
        found = await cluster.ok("DELETE", "models/mine/nodes/box?version=1")
        assert (found["node"], found["total_bytes"], found["kept"]) == ("box", 100, [])
        await first.until_told(lambda told: list(told.removed_files) == [sha("a")])
        status, answer = await cluster.request("DELETE", "/api/v1/models/mine/nodes/other")
        assert (status, answer["error"]["code"]) == (409, "registry.last_copy"), "the other one is on its way out"


async def test_files_that_a_replica_uses_stay_where_they_are(cluster: Cluster) -> None:
    async with two(cluster) as (first, second):
        await hold(second, "a")
        await cluster.ok("POST", "deployments", {"model": "mine", "engine": "fake", "node": "box"})
        await first.until_told(lambda told: len(told.replicas) == 1)
        for call in (
            ("DELETE", "/api/v1/models/mine/nodes/box", None),
            ("POST", "/api/v1/models/mine/copies", {"to": "other", "from": "box"}),
        ):
            status, answer = await cluster.request(*call)
            assert (status, answer["error"]["code"]) == (409, "registry.model_in_use")
            assert answer["error"]["message"].endswith(" is used on node box by mine")


async def test_what_is_asked_wrongly_says_so(cluster: Cluster) -> None:
    async with two(cluster):
        for method, path, body, code in (
            ("POST", "models/mine/copies", {"to": "othr"}, "node.not_found"),
            ("POST", "models/nothing/copies", {"to": "other"}, "registry.model_not_found"),
            ("POST", "models/mine/copies", {"to": "other", "version": 9}, "registry.version_not_found"),
            ("POST", "models/mine/copies", {"to": "box", "from": "box"}, "request.usage"),
            ("POST", "models/mine/copies", {"to": "box", "from": "other"}, "registry.not_on_node"),
            ("POST", "models/fake/copies", {"to": "other"}, "registry.no_files"),
            ("DELETE", "models/mine/nodes/other", None, "registry.not_on_node"),
            ("DELETE", "models/mine/nodes/nowhere", None, "node.not_found"),
            ("GET", "pulls/cpy_nothing", None, "registry.pull_not_found"),
        ):
            status, answer = await cluster.request(method, f"/api/v1/{path}", body)
            assert status >= 400
            assert answer["error"]["code"] == code


async def test_a_node_that_lacks_a_replicas_file_is_told_who_has_it(cluster: Cluster) -> None:
    async with two(cluster) as (_, second):
        await cluster.ok("POST", "deployments", {"model": "mine", "engine": "fake", "node": "other"})
        await second.until_told(lambda told: len(told.replicas) == 1)
        (order,) = second.desired[-1].replicas[0].files
        assert [peer.node_id for peer in order.peers] == ["nod_1"]
        assert order.source
