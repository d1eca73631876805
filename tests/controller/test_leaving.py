"""Cordon, drain, move and forget: a whole controller with played nodes and a played door."""

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from core.infra import postgres
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedDoor, PlayedNode
from tests.controller.remote import Machine, RemoteNode, free_ports, minted
from tests.controller.test_joining import until_rejected, until_shown
from tests.controller.test_reconcile import deploy_fake, until_state
from tests.waiting import until_async


class Boxes(AsyncExitStack):
    """Nodes a, b, ... of one cluster, and a door."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.nodes: dict[str, PlayedNode] = {}

    async def add(self, name: str, **more: Any) -> PlayedNode:
        node = PlayedNode(self.cluster.socket, node_id=f"nod_{name}", name=name, machine_id=name, **more)
        self.nodes[name] = await self.enter_async_context(node)
        await self.until(f"nodes/{name}", lambda one: one["state"] == "ready", f"node {name}")
        return node

    async def replicas(self) -> list[Any]:
        items: list[Any] = (await self.cluster.get("replicas"))["items"]
        return items

    async def on(self, name: str) -> list[Any]:
        return [one for one in await self.replicas() if one["node"] == name]

    async def until_on(self, name: str, count: int) -> list[Any]:
        async def are_there() -> bool:
            return len(await self.on(name)) == count

        await until_async(are_there, timeout_s=15, what=f"{count} replicas on {name}")
        return await self.on(name)

    async def until(self, path: str, says: Any, what: str) -> Any:
        async def is_so() -> bool:
            status, body = await self.cluster.request("GET", f"/api/v1/{path}")
            return status == 200 and bool(says(body))

        await until_async(is_so, timeout_s=15, what=what)
        return await self.cluster.get(path)

    async def kinds(self) -> list[str]:
        return [event["kind"] for event in (await self.cluster.get("events?limit=1000"))["items"]]


async def refused(cluster: Cluster, method: str, path: str, body: Any = None) -> tuple[int, str, str]:
    status, answer = await cluster.request(method, f"/api/v1/{path}", body)
    assert status >= 400, answer
    return status, answer["error"]["code"], answer["error"]["message"]


async def test_a_cordoned_node_keeps_what_it_has_and_gets_no_more(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        await boxes.add("a")
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
        assert (await cluster.ok("POST", "nodes/a/cordon"))["is_cordoned"] is True
        await cluster.ok("POST", "nodes/a/cordon")
        await cluster.ok("PATCH", "deployments/fake", {"replicas": 2})
        shown = await boxes.until("deployments/fake", lambda one: one["refusal"], "a refusal")
        assert "node a is cordoned" in shown["refusal"]["message"]
        assert "uncordon" in shown["refusal"]["hint"]
        assert shown["ready_replicas"] == 1
        assert (await cluster.ok("POST", "nodes/a/uncordon"))["is_cordoned"] is False
        await boxes.until_on("a", 2)
        kinds = await boxes.kinds()
        assert (kinds.count("node_cordoned"), kinds.count("node_uncordoned")) == (1, 1)


async def test_a_drained_node_gives_its_replica_to_another_and_the_old_one_serves_until_then(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes, PlayedDoor(cluster.socket) as door:
        await boxes.add("a")
        await deploy_fake(cluster)
        old = (await boxes.until_on("a", 1))[0]["id"]
        await door.until_routed("fake", 1)
        other = await boxes.add("b", obeys=False)
        shown = await cluster.ok("POST", "nodes/a/drain", {})
        assert shown["is_cordoned"] is True
        assert shown["drain"]["is_forced"] is False
        (new,) = await boxes.until_on("b", 1)
        left = await cluster.get(f"replicas/{old}")
        assert left["desired"] == "run"
        assert left["leaving"]["successor"] == new["id"]
        assert left["leaving"]["waiting"] == "its successor on node b is assigned"
        route = door.route("fake")
        assert route is not None
        assert [target.replica_id for target in route.targets] == [old]

        door.applies = False
        door.loads = {old: 1}
        await door.report()
        other.generation = other.last.generation
        await other.set(new["id"], "ready", port=20041)
        await boxes.until(f"replicas/{old}", lambda one: one["desired"] == "drain", "the drain")
        assert (await cluster.get(f"replicas/{old}"))["state"] == "ready", "no door has let go of it"
        door.applies = True
        await door.apply()
        said = (await boxes.until(f"replicas/{old}", lambda one: one["in_flight"] == 1, "the stream"))["leaving"]
        assert said["waiting"] == "the doors let go of it; 1 stream in flight"
        door.loads = {}
        await door.report()
        await boxes.until_on("a", 0)
        assert (await cluster.get("nodes/a"))["replicas"] == 0
        route = door.route("fake")
        assert route is not None
        assert [target.replica_id for target in route.targets] == [new["id"]]
        kinds = await boxes.kinds()
        assert (kinds.count("node_draining"), kinds.count("node_drained")) == (1, 1)


async def test_a_drain_that_can_place_nothing_waits_says_why_and_goes_on_when_it_can(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        await boxes.add("a")
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
        await cluster.ok("POST", "nodes/a/drain")
        said = (await boxes.until("nodes/a", lambda one: one["drain"]["replicas"][0]["is_stuck"], "why"))["drain"]
        assert said["replicas"][0]["waiting"] == "there is no other node"
        (replica,) = await boxes.replicas()
        assert replica["leaving"]["refusal"]["code"] == "placement.no_node"
        assert (replica["state"], replica["desired"]) == ("ready", "run")
        assert (await cluster.get("deployments/fake"))["refusal"] is None
        assert "replica_stuck" in await boxes.kinds()
        await boxes.add("b")
        await boxes.until_on("a", 0)
        await boxes.until_on("b", 1)


async def test_a_forced_drain_takes_the_last_copy_away(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        await boxes.add("a")
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
        await cluster.ok("POST", "nodes/a/drain")
        await boxes.until("nodes/a", lambda one: one["drain"]["replicas"][0]["is_stuck"], "why")
        assert (await cluster.ok("POST", "nodes/a/drain", {"force": True}))["drain"]["is_forced"] is True
        await boxes.until_on("a", 0)
        shown = await boxes.until("deployments/fake", lambda one: one["refusal"], "a refusal")
        assert shown["refusal"]["message"] == "node a is cordoned"
        await cluster.ok("POST", "nodes/a/uncordon")
        await until_state(cluster, "fake", "ready")


async def test_uncordon_ends_a_drain_and_cancels_the_successor_that_is_not_ready(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        await boxes.add("a")
        await deploy_fake(cluster)
        (old,) = await boxes.until_on("a", 1)
        await until_state(cluster, "fake", "ready")
        other = await boxes.add("b", obeys=False)
        await cluster.ok("POST", "nodes/a/drain")
        await boxes.until_on("b", 1)
        other.obeys = True
        shown = await cluster.ok("POST", "nodes/a/uncordon")
        assert (shown["is_cordoned"], shown["drain"]) == (False, None)
        other.generation -= 1
        await boxes.until_on("b", 0)
        (left,) = await boxes.replicas()
        assert (left["id"], left["desired"], left["leaving"]) == (old["id"], "run", None)


async def test_a_replica_moves_to_the_node_that_is_named_and_nowhere_else(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes, PlayedDoor(cluster.socket) as door:
        await boxes.add("a")
        await deploy_fake(cluster)
        (old,) = await boxes.until_on("a", 1)
        await door.until_routed("fake", 1)
        await boxes.add("b")
        await boxes.add("c")
        moved = await cluster.ok("POST", f"replicas/{old['id']}/move", {"node": "c"})
        assert moved["leaving"]["to"] == "c"
        await boxes.until_on("c", 1)
        await boxes.until_on("a", 0)
        assert await boxes.on("b") == []
        assert (await cluster.get("nodes/a"))["is_cordoned"] is False


async def test_a_second_move_goes_elsewhere_and_a_cancelled_one_nowhere(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        await boxes.add("a")
        await deploy_fake(cluster)
        (old,) = await boxes.until_on("a", 1)
        await until_state(cluster, "fake", "ready")
        for name in "bc":
            await boxes.add(name, obeys=False)
        path = f"replicas/{old['id']}/move"
        await cluster.ok("POST", path, {"node": "b"})
        await boxes.until_on("b", 1)
        await cluster.ok("POST", path, {"node": "c"})
        await boxes.until_on("c", 1)
        await boxes.until(f"replicas/{old['id']}", lambda one: one["leaving"]["to"] == "c", "the second move")
        assert [one["desired"] for one in await boxes.on("b")] in ([], ["stop"])
        stayed = await cluster.ok("DELETE", path)
        assert stayed["leaving"] is None
        await boxes.until("replicas", lambda all_: wanted(all_) == {old["id"]}, "only the old one")
        assert await refused(cluster, "DELETE", path) == (
            409,
            "replica.move_refused",
            f"replica {old['id']} does not move",
        )


async def test_a_move_whose_successor_crash_loops_is_given_up_and_the_old_one_stays_in_service(
    cluster: Cluster,
) -> None:
    async with Boxes(cluster) as boxes, PlayedDoor(cluster.socket) as door:
        await boxes.add("a")
        await deploy_fake(cluster)
        (old,) = await boxes.until_on("a", 1)
        await door.until_routed("fake", 1)
        other = await boxes.add("b", obeys=False)
        path = f"replicas/{old['id']}"
        await cluster.ok("POST", f"{path}/move", {"node": "b"})
        (new,) = await boxes.until_on("b", 1)
        await other.set(new["id"], "crash_loop", code="engine.exited", message="the engine ended with code 3")
        stays = await boxes.until(path, lambda one: one["move_failure"], "the end of the move")
        assert stays["leaving"] is None
        assert (stays["state"], stays["desired"]) == ("ready", "run")
        assert stays["move_failure"]["code"] == "replica.move_given_up"
        assert stays["move_failure"]["message"] == (
            "the move was given up: its successor on node b died too often: the engine ended with code 3"
        )
        assert "`slice move" in stays["move_failure"]["hint"]
        await boxes.until("replicas", lambda all_: wanted(all_) == {old["id"]}, "the successor's end")
        route = door.route("fake")
        assert route is not None
        assert [target.replica_id for target in route.targets] == [old["id"]]
        assert (await boxes.kinds()).count("replica_move_given_up") == 1
        other.obeys = True
        other.replicas.clear()
        await boxes.add("c")
        await cluster.ok("POST", f"{path}/move", {"node": "c"})
        await boxes.until_on("c", 1)
        await boxes.until("replicas", lambda all_: old["id"] not in wanted(all_), "the second move")


async def test_a_move_that_finds_no_place_for_ten_minutes_is_given_up_and_a_drain_goes_on(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        await boxes.add("a")
        await deploy_fake(cluster)
        (old,) = await boxes.until_on("a", 1)
        await until_state(cluster, "fake", "ready")
        gone = await boxes.add("b", obeys=False)
        path = f"replicas/{old['id']}"
        await cluster.ok("POST", f"{path}/move", {"node": "b"})
        await boxes.until_on("b", 1)
        gone.is_beating = False
        await boxes.until("nodes/b", lambda one: one["state"] == "lost", "the loss")
        await boxes.until(path, lambda one: one["leaving"]["refusal"], "why it waits")
        async with cluster.database() as connection:
            await connection.execute("UPDATE controller.replica SET move_since = now() - interval '10 minutes'")
        stays = await boxes.until(path, lambda one: one["move_failure"], "the end of the move")
        assert stays["leaving"] is None
        assert "node b has not been heard of" in stays["move_failure"]["message"]
        await boxes.add("c")
        await cluster.ok("POST", f"{path}/move", {"node": "c"})
        assert (await cluster.get(path))["move_failure"] is None, "another move begins anew"
        await boxes.until_on("c", 1)


def wanted(answer: Any) -> set[str]:
    return {one["id"] for one in answer["items"] if one["desired"] == "run"}


async def test_a_move_is_refused_with_the_reason(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        await boxes.add("a")
        await boxes.add("b")
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
        (old,) = await boxes.replicas()
        here, there = old["node"], {"a": "b", "b": "a"}[old["node"]]
        path = f"replicas/{old['id']}/move"
        await cluster.ok("POST", f"nodes/{there}/cordon")
        assert await refused(cluster, "POST", path, {"node": there}) == (
            409,
            "replica.move_refused",
            f"replica {old['id']} cannot move to node {there}: node {there} is cordoned",
        )
        status, code, message = await refused(cluster, "POST", path, {"node": here})
        assert (status, code) == (409, "replica.move_refused")
        assert message.endswith(f"is on node {here} already")
        assert (await refused(cluster, "POST", path, {"node": "nowhere"}))[:2] == (404, "node.not_found")
        assert (await refused(cluster, "POST", "replicas/rep_none/move", {"node": "a"}))[:2] == (
            404,
            "replica.not_found",
        )
        assert (await refused(cluster, "POST", path, {"node": "a", "now": 1}))[:2] == (400, "request.unknown_field")
        assert (await cluster.get(f"replicas/{old['id']}"))["leaving"] is None


async def test_a_drained_node_stays_drained_when_the_controller_restarts(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        await boxes.add("a")
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
        await cluster.ok("POST", "nodes/a/drain")
        await boxes.nodes["a"].hang_up()
        await cluster.stop()
        await cluster.start()
        await cluster.ready()
        await boxes.nodes["a"].dial()
        assert (await cluster.get("nodes/a"))["drain"]["replicas"][0]["deployment"] == "fake"
        await boxes.add("b")
        await boxes.until_on("b", 1)
        await boxes.until_on("a", 0)


async def test_only_a_lost_node_is_forgotten_and_its_replicas_are_placed_elsewhere(
    cluster: Cluster, database: postgres.Database
) -> None:
    async with Boxes(cluster) as boxes:
        gone = await boxes.add("a")
        await deploy_fake(cluster)
        await boxes.until_on("a", 1)
        assert (await refused(cluster, "DELETE", "nodes/a"))[:2] == (409, "node.in_use")
        async with database.transaction() as connection:
            await connection.execute(
                "INSERT INTO controller.certificate (serial, role, subject, expires_at) VALUES "
                "('0a', 'node', 'nod_a', %(at)s), ('0b', 'node', 'nod_b', %(at)s)",
                {"at": datetime.now(UTC) + timedelta(hours=1)},
            )
        assert (await cluster.get("nodes/a"))["certificate_expires_at"] is not None
        gone.is_beating = False
        await boxes.until("nodes/a", lambda one: one["state"] == "lost", "the loss")
        status, _ = await cluster.request("DELETE", "/api/v1/nodes/a")
        assert status == 204
        assert (await refused(cluster, "GET", "nodes/a"))[:2] == (404, "node.not_found")
        async with database.connection() as connection:
            found = await connection.execute("SELECT serial, revoked_at IS NULL FROM controller.certificate ORDER BY 1")
            assert await found.fetchall() == [("0a", False), ("0b", True)]
        await boxes.add("b")
        await boxes.until_on("b", 1)
        assert (await until_state(cluster, "fake", "ready"))["ready_replicas"] == 1
        assert "node_forgotten" in await boxes.kinds()


async def test_a_deletion_that_waits_for_a_dead_node_says_so_until_the_node_is_forgotten(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        gone = await boxes.add("a")
        await deploy_fake(cluster)
        (replica,) = await boxes.until_on("a", 1)
        await until_state(cluster, "fake", "ready")
        assert (await cluster.get("deployments/fake"))["blocked"] is None
        await gone.hang_up()
        await boxes.until("nodes/a", lambda one: one["state"] == "lost", "the loss")
        told = await cluster.ok("DELETE", "deployments/fake")
        assert told["blocked"]["code"] == "replica.node_silent"
        assert "node a is silent" in told["waiting"]
        assert "`slice node forget a`" in told["blocked"]["hint"]
        shown = await boxes.until(f"replicas/{replica['id']}", lambda one: one["desired"] == "stop", "the wish")
        assert shown["blocked"]["nodes"] == ["a"]
        assert (await cluster.request("DELETE", "/api/v1/nodes/a"))[0] == 204

        async def is_gone() -> bool:
            return (await cluster.request("GET", "/api/v1/deployments/fake"))[0] == 404

        await until_async(is_gone, what="the deployment's end")


async def test_a_living_node_is_forgotten_only_by_force_and_its_session_ends(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        node = await boxes.add("a")
        await boxes.until("nodes/a", lambda one: one["state"] == "ready", "the node")
        status, _ = await cluster.request("DELETE", "/api/v1/nodes/a?force=true")
        assert status == 204

        async def is_told() -> bool:
            return node.reject is not None

        await until_async(is_told)
        assert node.reject is not None
        assert (node.reject.code, node.reject.is_fatal) == ("node.not_joined", True)
        assert (await cluster.get("nodes"))["items"] == []


async def test_a_node_that_joins_again_begins_anew(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        node = await boxes.add("a")
        await deploy_fake(cluster)
        (old,) = await boxes.until_on("a", 1)
        await cluster.request("DELETE", "/api/v1/nodes/a?force=true")
        await node.hang_up()
        await node.dial()
        (new,) = await boxes.until_on("a", 1)
        assert new["id"] != old["id"]
        await until_state(cluster, "fake", "ready")
        assert list(node.replicas) == [new["id"]]


async def test_the_move_to_a_forgotten_node_is_cancelled(cluster: Cluster) -> None:
    async with Boxes(cluster) as boxes:
        await boxes.add("a")
        await deploy_fake(cluster)
        (old,) = await boxes.until_on("a", 1)
        await until_state(cluster, "fake", "ready")
        await boxes.add("b", obeys=False)
        await cluster.ok("POST", f"replicas/{old['id']}/move", {"node": "b"})
        await boxes.until_on("b", 1)
        await cluster.request("DELETE", "/api/v1/nodes/b?force=true")
        (left,) = await boxes.replicas()
        assert (left["id"], left["leaving"]) == (old["id"], None)


async def test_the_controllers_own_node_is_never_forgotten(url: str, runtime: Path) -> None:
    async with Cluster(url, runtime, own_node_id="nod_a") as cluster:
        await cluster.ready()
        async with Boxes(cluster) as boxes:
            await boxes.add("a")
            await boxes.until("nodes/a", lambda one: one["state"] == "ready", "the node")
            status, code, message = await refused(cluster, "DELETE", "nodes/a?force=true")
            assert (status, code) == (409, "node.in_use")
            assert "the controller's own machine" in message


async def test_an_unknown_node_is_said_to_be_unknown(cluster: Cluster) -> None:
    for call in ("cordon", "uncordon", "drain"):
        assert (await refused(cluster, "POST", f"nodes/nowhere/{call}"))[:2] == (404, "node.not_found")
    assert (await refused(cluster, "DELETE", "nodes/nowhere"))[:2] == (404, "node.not_found")


async def test_a_forgotten_machine_comes_back_only_by_joining_again(url: str, runtime: Path) -> None:
    async with Cluster(url, runtime, node_port=free_ports()) as cluster:
        await cluster.ready()
        machine = Machine(authority=runtime / "authority.pem", port=cluster.node_port)
        await machine.join(await minted(cluster, name="far"))
        old = machine.certificate_pem
        async with RemoteNode(machine) as node:
            await until_shown(cluster, "far", "ready")
            assert (await cluster.get("nodes/far"))["certificate_expires_at"] is not None
            assert (await cluster.request("DELETE", "/api/v1/nodes/far?force=true"))[0] == 204
            assert (await until_rejected(node)).code == "node.not_joined"
        async with RemoteNode(machine) as node:
            reject = await until_rejected(node)
            assert (reject.code, reject.is_fatal) == ("node.certificate_invalid", True)
        assert (await cluster.get("nodes"))["items"] == []
        await machine.join(await minted(cluster, name="far"))
        async with RemoteNode(machine, channel=machine.channel(old)) as node:
            assert (await until_rejected(node)).code == "node.certificate_invalid"
        async with RemoteNode(machine) as node:
            await until_shown(cluster, "far", "ready")
            assert node.reject is None
