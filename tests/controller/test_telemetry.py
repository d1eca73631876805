"""Readings by a call of their own, over real mTLS: whose they may be, and for how long they count."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.slice.node.v1 import node_pb2 as pb
from protos.slice.node.v1 import node_pb2_grpc
from tests.controller.cluster import Cluster
from tests.controller.remote import Machine, RemoteNode, free_ports, minted
from tests.waiting import until_async

GPU = pb.DeviceReading(device_id="GPU-1", kind="nvidia", name="GPU", total_bytes=100, free_bytes=42)


@pytest.fixture
async def listening(url: str, runtime: Path) -> AsyncIterator[Cluster]:
    async with Cluster(url, runtime, node_port=free_ports()) as running:
        await running.ready()
        yield running


@pytest.fixture
async def machine(listening: Cluster, runtime: Path) -> Machine:
    machine = Machine(authority=runtime / "authority.pem", port=listening.node_port)
    assert not (await machine.join(await minted(listening))).reject.code
    return machine


async def sent(machine: Machine, **fields: Any) -> grpc.StatusCode:
    """Send one reading on a connection of its own and return how the call ended."""
    async with machine.channel() as channel:
        stub: Any = node_pb2_grpc.NodeControlStub(channel)
        call = stub.SendTelemetry(timeout=10)
        said = {"node_id": machine.node_id, "session_epoch": 1, "devices": [GPU], "disk_free_bytes": 7, **fields}
        await call.write(pb.Telemetry(**said))
        await call.done_writing()
        return await call.code()


async def shown(cluster: Cluster) -> Any:
    return await cluster.get("nodes/far")


async def test_readings_count_for_the_session_that_they_belong_to_alone(listening: Cluster, machine: Machine) -> None:
    node = RemoteNode(machine)
    node.protocol = (1, 2)
    async with node:

        async def is_open() -> bool:
            return node.ack is not None

        await until_async(is_open, 10, "the session")
        assert node.ack is not None
        epoch = node.ack.session_epoch
        assert await sent(machine, session_epoch=epoch + 1) == grpc.StatusCode.OK
        before = await shown(listening)
        assert [device["id"] for device in before["devices"]] == ["cpu"]
        assert await sent(machine, session_epoch=epoch) == grpc.StatusCode.OK
        after = await shown(listening)
        assert [(device["id"], device["free_bytes"]) for device in after["devices"]] == [("GPU-1", 42)]
        assert after["disk_free_bytes"] == 7
        assert after["measured_s_ago"] < 5
        # What its heartbeats carry counts no more: it speaks the newer protocol.
        beats = len(node.acks)

        async def has_beaten() -> bool:
            return len(node.acks) > beats + 1

        await until_async(has_beaten, 10, "two heartbeats")
        assert (await shown(listening))["disk_free_bytes"] == 7


@pytest.mark.parametrize(
    "fields",
    [{"node_id": "nod_other"}, {"node_id": ""}, {"devices": [pb.DeviceReading(device_id="x", kind="toaster")]}],
    ids=["another node", "no node", "a strange device"],
)
async def test_readings_of_others_and_strange_ones_are_refused(
    listening: Cluster, machine: Machine, fields: dict[str, Any]
) -> None:
    async with RemoteNode(machine):
        assert await sent(machine, **fields) == grpc.StatusCode.PERMISSION_DENIED


async def test_a_node_that_was_forgotten_is_not_believed_any_more(listening: Cluster, machine: Machine) -> None:
    assert (await listening.request("DELETE", "/api/v1/nodes/far?force=true"))[0] == 204
    assert await sent(machine) == grpc.StatusCode.PERMISSION_DENIED
