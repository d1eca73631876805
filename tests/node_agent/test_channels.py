"""Heartbeats and telemetry on connections of their own: what hangs on one does not hold up the other."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.node_agent import controllers, nodes, trees
from tests.node_agent.nodes import Node

BEAT_S = 0.2
LATE_S = 2.0
"""A heartbeat that comes so long after the one before waited for something; a driver is given 5 s to answer."""


def write_gpus(file: Path, free_bytes: int, count: int = 1, name: str = "Pretended") -> None:
    device = {"name": name, "total_bytes": 100, "free_bytes": free_bytes, "kind": "nvidia"}
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"devices": [{"device_id": f"GPU-{number}", **device} for number in range(count)]}))
    fresh.rename(file)


def hang(file: Path) -> None:
    """Let whoever reads the devices from now on wait for ever, as for a driver that does not return."""
    pipe = file.with_suffix(".pipe")
    os.mkfifo(pipe)
    pipe.rename(file)


@pytest.fixture
def gpus(tmp_path: Path) -> Path:
    write_gpus(tmp_path / "gpus.json", 80)
    return tmp_path / "gpus.json"


@pytest.fixture
async def node(tmp_path: Path, gpus: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path, devices=f"sim:{gpus}")
    try:
        yield node
    finally:
        await node.close()


@pytest.fixture(params=[1, 2], ids=["protocol 1", "protocol 2"])
async def controller(node: Node, request: pytest.FixtureRequest) -> AsyncIterator[controllers.Controller]:
    played = controllers.Controller()
    played.protocol = request.param
    played.lease_ms = 30_000
    async with controllers.serving(node.control, played):
        yield played


async def longest_gap_s(controller: controllers.Controller, seconds: float) -> float:
    """Return the longest time between two heartbeats within `seconds` from now."""
    heard, last, longest = len(controller.beats), time.monotonic(), 0.0
    until = last + seconds
    while (now := time.monotonic()) < until:
        longest = max(longest, now - last)
        if len(controller.beats) > heard:
            heard, last = len(controller.beats), now
        await asyncio.sleep(0.02)
    return longest


def newest_free_bytes(controller: controllers.Controller) -> dict[str, int]:
    told = controller.telemetry if controller.protocol > 1 else controller.beats
    return {device.device_id: device.free_bytes for device in told[-1].devices} if told else {}


async def test_readings_travel_as_the_protocol_says(node: Node, controller: controllers.Controller, gpus: Path) -> None:
    await node.start()
    await trees.until(lambda: newest_free_bytes(controller).get("GPU-0") == 80, 40)
    write_gpus(gpus, 30)
    await trees.until(lambda: newest_free_bytes(controller).get("GPU-0") == 30)
    has_readings = any(beat.devices or beat.disk_free_bytes for beat in controller.beats)
    assert (has_readings, bool(controller.telemetry)) == ((True, False), (False, True))[controller.protocol - 1]
    if controller.telemetry:
        said = controller.telemetry[-1]
        assert (said.node_id, said.session_epoch) == (controller.hellos[0].node_id, 1)
        assert said.disk_free_bytes > 0
    else:
        assert all(beat.disk_free_bytes > 0 for beat in controller.beats)


async def test_a_driver_that_hangs_delays_no_heartbeat_and_no_report_and_costs_its_own_devices_alone(
    node: Node, controller: controllers.Controller, gpus: Path
) -> None:
    await node.start()
    await trees.until(lambda: newest_free_bytes(controller).get("GPU-0") == 80, 40)
    hang(gpus)
    await controller.want(nodes.desired(1, nodes.want()))
    assert await longest_gap_s(controller, 7.0) < LATE_S
    await nodes.until_state(controller, "ready")
    await trees.until(lambda: set(newest_free_bytes(controller)) == {"cpu"})
    # Until the driver returns; then its devices are back.
    pipe = os.open(gpus, os.O_RDWR)
    try:
        write_gpus(gpus, 20)
        os.write(pipe, b"{}")
    finally:
        os.close(pipe)
    await trees.until(lambda: newest_free_bytes(controller).get("GPU-0") == 20)
    assert len(controller.hellos) == 1


async def test_a_line_that_is_full_of_telemetry_delays_no_heartbeat(node: Node, tmp_path: Path, gpus: Path) -> None:
    write_gpus(gpus, 80, count=64, name="x" * 4000)
    slow = controllers.Controller()
    slow.protocol, slow.reads_telemetry, slow.lease_ms = 2, False, 30_000
    port = nodes.free_ports(1)[0]
    async with controllers.serving(node.control, slow, address=f"127.0.0.1:{port}"):
        await node.start(control_target=f"127.0.0.1:{port}")
        await trees.until(lambda: slow.telemetry, 40)
        # 0.25 MB each 50 ms: what the line takes by itself is full long before these seconds are over.
        assert await longest_gap_s(slow, 4.0) < LATE_S
        assert len(slow.hellos) == 1
        assert slow.peers["Session"] != slow.peers["SendTelemetry"]


async def test_telemetry_that_was_interrupted_goes_on_within_the_same_session(
    node: Node, tmp_path: Path, gpus: Path
) -> None:
    played = controllers.Controller()
    played.protocol = 2
    async with controllers.serving(node.control, played):
        await node.start()
        await trees.until(lambda: len(played.telemetry) > 2, 40)
        write_gpus(gpus, 70)
        played.cut_telemetry()
        await trees.until(lambda: newest_free_bytes(played).get("GPU-0") == 70)
        assert len(played.hellos) == 1
