"""A node that leaves by itself: what it may ask for with its own certificate, and what comes of asking twice."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from core.identities import Role
from core.infra.grpc import CHANNEL_OPTIONS, bearer
from protos.slice.node.v1 import node_pb2 as pb
from protos.slice.node.v1 import node_pb2_grpc
from tests.controller.cluster import NODE, Cluster
from tests.controller.played import PlayedNode
from tests.controller.remote import Machine, RemoteNode, free_ports, identity, minted
from tests.controller.test_certificates import signed
from tests.controller.test_joining import events, until_rejected, until_shown
from tests.controller.test_reconcile import deploy_fake, until_state
from tests.waiting import until_async


@pytest.fixture
async def joined(url: str, runtime: Path) -> AsyncIterator[tuple[Cluster, Machine]]:
    """A controller with its own node, `nod_1`, and another machine that has joined as `far`."""
    async with Cluster(url, runtime, node_port=free_ports(), own_node_id="nod_1") as running:
        await running.ready()
        machine = Machine(authority=runtime / "authority.pem", port=running.node_port)
        await machine.join(await minted(running, name="far"))
        yield running, machine


async def left(channel: Any, *, is_final: bool, token: str = "") -> pb.LeaveReply:
    async with channel:
        stub: Any = node_pb2_grpc.NodeControlStub(channel)
        metadata = bearer(token) if token else None
        reply: pb.LeaveReply = await stub.Leave(pb.LeaveRequest(is_final=is_final), metadata=metadata, timeout=10)
    return reply


async def test_a_node_drains_itself_says_what_remains_and_is_forgotten_once(joined: tuple[Cluster, Machine]) -> None:
    cluster, machine = joined
    async with RemoteNode(machine) as node:
        await until_shown(cluster, "far", "ready")
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
        first = await left(machine.channel(), is_final=False)
        assert (first.reject.code, first.is_gone) == ("", False)
        assert [one.deployment for one in first.remaining] == ["fake"]
        assert (await cluster.get("nodes/far"))["drain"] is not None

        async def is_told_why() -> bool:
            (one,) = (await left(machine.channel(), is_final=False)).remaining
            return one.is_stuck and "no other node" in one.waiting

        await until_async(is_told_why, what="the reason")
        async with PlayedNode(cluster.socket):

            async def is_empty() -> bool:
                reply = await left(machine.channel(), is_final=False)
                return not reply.remaining and not reply.is_gone

            await until_async(is_empty, timeout_s=15, what="the last replica on its way")
            assert (await left(machine.channel(), is_final=True)).is_gone
            assert (await until_rejected(node)).code == "node.not_joined"
            assert [one["name"] for one in (await cluster.get("nodes"))["items"]] == ["box"]
            for is_final in (True, False):
                again = await left(machine.channel(), is_final=is_final)
                assert (again.reject.code, again.is_gone) == ("", True)
    kinds = [one["kind"] for one in (await cluster.get("events?limit=1000"))["items"]]
    assert (kinds.count("node_draining"), kinds.count("node_left"), kinds.count("node_forgotten")) == (1, 1, 0)


async def test_a_node_that_leaves_at_once_gives_its_promises_back(joined: tuple[Cluster, Machine]) -> None:
    cluster, machine = joined
    async with RemoteNode(machine):
        await until_shown(cluster, "far", "ready")
        await deploy_fake(cluster)
        await until_state(cluster, "fake", "ready")
    assert (await left(machine.channel(), is_final=True)).is_gone
    async with PlayedNode(cluster.socket):
        await until_state(cluster, "fake", "ready")
        assert {one["node"] for one in (await cluster.get("replicas"))["items"]} == {"box"}


async def test_the_machine_joins_again_after_it_left_and_its_old_certificate_is_worth_nothing(
    joined: tuple[Cluster, Machine],
) -> None:
    cluster, machine = joined
    old = machine.certificate_pem
    assert (await left(machine.channel(), is_final=True)).is_gone
    await machine.join(await minted(cluster, name="far"))
    reply = await left(machine.channel(old), is_final=True)
    assert (reply.reject.code, reply.is_gone) == ("node.certificate_invalid", False)
    async with RemoteNode(machine):
        await until_shown(cluster, "far", "ready")


async def test_the_controllers_own_machine_does_not_leave(joined: tuple[Cluster, Machine], runtime: Path) -> None:
    cluster, machine = joined
    async with PlayedNode(cluster.socket):
        await until_shown(cluster, "box", "ready")
        for is_final in (False, True):
            local = grpc.aio.insecure_channel(f"unix:{cluster.socket}", options=CHANNEL_OPTIONS)
            by_socket = await left(local, is_final=is_final, token=NODE)
            assert by_socket.reject.code == "node.in_use"
            # Its node has a certificate too, and the port of the others is there for whoever has one.
            own = machine.channel(*signed(runtime, identity("nod_1")))
            assert (await left(own, is_final=is_final)).reject.code == "node.in_use"
        shown = await cluster.get("nodes/box")
        assert (shown["state"], shown["is_cordoned"]) == ("ready", False)


async def test_who_is_no_node_of_this_cluster_ends_nobody(joined: tuple[Cluster, Machine], runtime: Path) -> None:
    cluster, machine = joined
    for who in (identity("nod_far", role=Role.DOOR), identity("nod_far", cluster_id="clu_other")):
        reply = await left(machine.channel(*signed(runtime, who)), is_final=True)
        assert (reply.reject.code, reply.is_gone) == ("node.certificate_invalid", False)
    assert (await cluster.get("nodes/far"))["id"] == "nod_far"
    assert await events(cluster, "node_left") == []
