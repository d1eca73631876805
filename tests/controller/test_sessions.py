"""Node sessions over real gRPC: who may begin one, what ends one, and what a controller that slept believes."""

import asyncio
from typing import Any

import pytest

from protos.slice.node.v1 import node_pb2 as pb
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedNode
from tests.waiting import until_async


async def until_rejected(node: PlayedNode) -> pb.Reject:
    async def is_rejected() -> bool:
        return node.reject is not None

    await until_async(is_rejected, timeout_s=8, what="a reject")
    assert node.reject is not None
    return node.reject


async def until_shown(cluster: Cluster, name: str, state: str) -> Any:
    async def is_shown() -> bool:
        status, body = await cluster.request("GET", f"/api/v1/nodes/{name}")
        return status == 200 and body["state"] == state

    await until_async(is_shown, timeout_s=8, what=f"node {name} {state}")
    return await cluster.get(f"nodes/{name}")


async def test_a_node_is_welcomed_with_its_timers_and_acknowledged(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await until_shown(cluster, "box", "ready")

        async def is_acknowledged() -> bool:
            return 1 in node.acks

        await until_async(is_acknowledged)
        assert node.ack is not None
        assert (node.ack.heartbeat_ms, node.ack.lease_ms, node.ack.fence_ms) == (200, 3800, 1800)
        assert node.ack.redial_ms == 4  # one node: a 250th of a second
        assert (node.ack.leader_epoch, node.ack.session_epoch) == (1, 1)


async def test_the_same_machine_dialling_again_ends_the_older_session(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as older:
        await until_shown(cluster, "box", "ready")
        async with PlayedNode(cluster.socket) as newer:
            assert (await until_rejected(older)).code == "node.stale_sequence"
            assert (await until_shown(cluster, "box", "ready"))["session_epoch"] == 2
            assert newer.reject is None


async def test_another_machine_with_the_same_identity_is_refused_while_the_first_lives(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as first:
        await until_shown(cluster, "box", "ready")
        async with PlayedNode(cluster.socket, machine_id="m2") as copy:
            reject = await until_rejected(copy)
            assert (reject.code, reject.is_fatal) == ("node.identity_conflict", True)
        assert first.reject is None


async def test_a_second_node_of_the_same_name_gets_another_one(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket):
        await until_shown(cluster, "box", "ready")
        async with PlayedNode(cluster.socket, node_id="nod_zzz2", machine_id="m2"):
            await until_shown(cluster, "box-zzz2", "ready")


async def until_recorded(cluster: Cluster, kind: str) -> None:
    async def is_recorded() -> bool:
        return kind in [event["kind"] for event in (await cluster.get("events?limit=1000"))["items"]]

    await until_async(is_recorded, timeout_s=8, what=f"the event {kind}")


async def test_goodbye_means_offline_and_silence_only_suspect_then_lost(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await until_shown(cluster, "box", "ready")
        await until_recorded(cluster, "node_ready")
        node.is_beating = False
        for state in ("suspect", "lost"):
            await until_shown(cluster, "box", state)
            await until_recorded(cluster, f"node_{state}")
        node.is_beating = True
        await until_shown(cluster, "box", "ready")
        node.is_beating = False
        await node.say(pb.NodeMessage(goodbye=pb.Goodbye(reason="down")))
        await until_shown(cluster, "box", "offline")
        await until_recorded(cluster, "node_offline")


async def test_a_heartbeat_that_does_not_grow_ends_the_session(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await until_shown(cluster, "box", "ready")

        async def has_beaten() -> bool:
            return 2 in node.acks

        await until_async(has_beaten)
        node.sequence = 0
        assert (await until_rejected(node)).code == "node.stale_sequence"


@pytest.mark.parametrize(
    "message",
    [
        pb.NodeMessage(observed=pb.Observed(replicas=[pb.ReplicaReport(replica_id="x", state="flying")])),
        pb.NodeMessage(observed=pb.Observed(files=[pb.FileReport(state="done", sha256="zz")])),
        pb.NodeMessage(observed=pb.Observed(replicas=[pb.ReplicaReport(state="ready", port=70000)])),
        pb.NodeMessage(hello=pb.Hello()),
    ],
    ids=["state", "digest", "port", "second hello"],
)
async def test_a_message_that_is_not_right_ends_the_session(cluster: Cluster, message: pb.NodeMessage) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.say(message)
        reject = await until_rejected(node)
        assert (reject.code, reject.is_fatal) == ("request.invalid_field", True)


async def test_a_former_leader_refuses_a_node_that_has_seen_a_newer_one(cluster: Cluster) -> None:
    node = PlayedNode(cluster.socket)
    node.max_epoch = 99
    async with node:
        reject = await until_rejected(node)
        assert (reject.code, reject.is_fatal) == ("controller.not_ready", False)


async def test_hostile_texts_of_a_node_are_cut_and_cleaned(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket, name="B\x00ox !" + "x" * 500) as node:
        await node.set("rep_unknown", "failed", message="\x00" + "y" * 100_000)
        await asyncio.sleep(0)
        items = (await cluster.get("nodes"))["items"]
        await until_async(lambda: _has_node(cluster))
        items = (await cluster.get("nodes"))["items"]
        assert len(items[0]["name"]) <= 63
        assert node.reject is None


async def _has_node(cluster: Cluster) -> bool:
    return bool((await cluster.get("nodes"))["items"])


async def test_a_cancelled_pull_is_told_to_the_node_and_a_failed_one_registers_nothing(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        pull = await cluster.ok("POST", "pulls", {"name": "smollm2"})
        await node.until_told(lambda told: len(told.files) == 1 and not told.files[0].is_cancelled)
        same = await cluster.ok("POST", "pulls", {"name": "smollm2"})
        assert same["id"] == pull["id"]
        node.files[pull["id"]] = pb.FileReport(want_id=pull["id"], state="running", bytes_done=40, bytes_total=100)
        await node.observe()

        async def is_running() -> bool:
            shown = await cluster.get(f"pulls/{pull['id']}")
            return (shown["state"], shown["bytes_done"], shown["bytes_total"]) == ("running", 40, 100)

        await until_async(is_running)
        assert (await cluster.ok("DELETE", f"pulls/{pull['id']}"))["state"] == "cancelled"
        await node.until_told(lambda told: len(told.files) == 1 and told.files[0].is_cancelled)
        node.files.clear()
        other = await cluster.ok("POST", "pulls", {"name": "smollm2"})
        await node.until_told(lambda told: any(one.want_id == other["id"] for one in told.files))
        await node.finish_pull(other["id"], "0" * 64)

        async def has_failed() -> bool:
            return (await cluster.get(f"pulls/{other['id']}"))["state"] == "failed"

        await until_async(has_failed)
        assert (await cluster.get(f"pulls/{other['id']}"))["error"]["code"] == "source.digest_mismatch"
        assert (await cluster.get("models"))["items"] == []


async def test_another_digest_of_a_model_becomes_its_next_version(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        for number, letter in ((1, "a"), (2, "b"), (2, "a")):
            pull = await cluster.ok("POST", "pulls", {"name": "mine", "source": f"file:/models/{number}{letter}.gguf"})
            await node.until_told(lambda told, wanted=pull["id"]: any(one.want_id == wanted for one in told.files))
            await node.finish_pull(pull["id"], letter * 64)

            async def is_done(pull_id: str = pull["id"]) -> bool:
                return (await cluster.get(f"pulls/{pull_id}"))["state"] == "done"

            await until_async(is_done)
        versions = (await cluster.get("models/mine"))["versions"]
        assert [version["number"] for version in versions] == [1, 2]
