"""Where doors are told that a replica on another machine is."""

import pytest

from controller.api import node_wire
from controller.fleet.lease import Timers
from core.errors import Failure
from protos.slice.node.v1 import node_pb2 as pb
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedDoor, PlayedNode
from tests.controller.test_reconcile import deploy_fake
from tests.waiting import until_async


async def test_doors_are_told_the_plane_of_a_replicas_node_also_after_the_controllers_restart(cluster: Cluster) -> None:
    node = PlayedNode(cluster.socket)
    node.plane = ("10.0.0.7", 7090)
    async with node:
        async with PlayedDoor(cluster.socket) as door:
            await deploy_fake(cluster)
            target = (await door.until_routed("fake", 1)).targets[0]
            assert (target.node_id, target.plane_host, target.plane_port) == ("nod_1", "10.0.0.7", 7090)
            assert (target.host, target.port) == ("127.0.0.1", 20040)
        await node.hang_up()
        await cluster.stop()
        await cluster.start()
        await cluster.ready()
        async with PlayedDoor(cluster.socket) as door:
            assert (await door.until_routed("fake", 1)).targets[0].plane_host == "10.0.0.7"
        node.plane = ("10.0.0.8", 7091)
        await node.dial()
        async with PlayedDoor(cluster.socket) as door:

            async def has_moved() -> bool:
                route = door.route("fake")
                return route is not None and [one.plane_host for one in route.targets] == ["10.0.0.8"]

            await until_async(has_moved, 10, "the new address")


async def test_a_replica_of_a_node_without_a_plane_is_reached_as_ever(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket), PlayedDoor(cluster.socket) as door:
        await deploy_fake(cluster)
        target = (await door.until_routed("fake", 1)).targets[0]
        assert (target.plane_host, target.plane_port, target.host) == ("", 0, "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "port"),
    [("10.0.0.7", 0), ("", 7090), ("10.0.0.7", 65536), ("a b", 1), ("a;b", 1), ("x/y", 1), ("http://x", 1)],
)
def test_an_address_that_is_none_is_refused(host: str, port: int) -> None:
    hello = pb.Hello(node_id="nod_1", machine_id="m", plane_host=host, plane_port=port)
    with pytest.raises(Failure, match="plane_host"):
        node_wire.hello(hello)


@pytest.mark.parametrize("host", ["10.0.0.7", "fd00::7", "gpu-box.example.org"])
def test_addresses_and_names_are_taken(host: str) -> None:
    hello = node_wire.hello(pb.Hello(node_id="nod_1", machine_id="m", plane_host=host, plane_port=7090))
    assert (hello.plane_host, hello.plane_port) == (host, 7090)


@pytest.mark.parametrize(("heartbeat_s", "fence_s"), [(2.0, 9.0), (3.0, 13.0), (10.0, 38.7)])
def test_a_node_is_to_fence_itself_before_it_is_given_up(heartbeat_s: float, fence_s: float) -> None:
    assert Timers(heartbeat_s=heartbeat_s).fence_s == pytest.approx(fence_s)
