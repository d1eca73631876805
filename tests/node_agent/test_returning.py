"""Device memory of a dead engine, on pretended devices: waited for, told of, and never started on top of."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Failure
from core.infra.clock import SystemClock
from core.infra.logs import Log
from node_agent import shim_client
from node_agent.devices.reading import Devices, sources_of
from node_agent.returning import Returning, missing
from protos.slice.node.v1 import node_pb2
from tests.node_agent import controllers, nodes, trees
from tests.node_agent.controllers import Controller
from tests.node_agent.nodes import Node

GIB = 1024**3


class Gpu:
    """One pretended GPU of 24 GiB whose file a test changes."""

    def __init__(self, tmp_path: Path) -> None:
        self.file = tmp_path / "gpus.json"
        self.set(22 * GIB)

    def set(self, free_bytes: int, *processes: tuple[int, int]) -> None:
        device = {"device_id": "GPU-a", "name": "Pretended", "total_bytes": 24 * GIB, "free_bytes": free_bytes}
        booked = [{"pid": pid, "bytes": size} for pid, size in processes]
        whole = self.file.with_suffix(".new")
        whole.write_text(json.dumps({"devices": [device], "processes": booked}))
        whole.rename(self.file)


@pytest.fixture
def gpu(tmp_path: Path) -> Gpu:
    return Gpu(tmp_path)


def returning(tmp_path: Path, gpu: Gpu, promised: int = 20 * GIB, within_s: float = 0.3) -> Returning:
    return Returning(
        promises=[node_pb2.DevicePromise(device_id="GPU-a", bytes=promised)],
        directory=tmp_path,
        devices=Devices(sources_of(f"sim:{gpu.file}"), Log("test", SystemClock())),
        within_s=within_s,
    )


async def test_memory_that_is_back_is_not_waited_for(tmp_path: Path, gpu: Gpu) -> None:
    one = returning(tmp_path, gpu)
    await one.wait()  # before its first spawn nothing can be owed
    await one.note()
    gpu.set(21 * GIB)
    await one.wait()


async def test_memory_that_stays_away_is_told_with_device_and_amount(tmp_path: Path, gpu: Gpu) -> None:
    one = returning(tmp_path, gpu)
    await one.note()
    gpu.set(4 * GIB)
    with pytest.raises(Failure, match=r"GPU-a still has less than 20.0 GiB free") as caught:
        await one.wait()
    assert caught.value.code == "engine.memory_not_returned"


async def test_memory_that_comes_back_late_is_waited_for(tmp_path: Path, gpu: Gpu) -> None:
    one = returning(tmp_path, gpu, within_s=20.0)
    await one.note()
    gpu.set(4 * GIB)
    waiting = asyncio.ensure_future(one.wait())
    done, _ = await asyncio.wait({waiting}, timeout=0.4)
    assert not done
    gpu.set(22 * GIB)
    await waiting


async def test_memory_booked_on_the_dead_is_not_back(tmp_path: Path, gpu: Gpu) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "600")
    mark = shim_client.ProcessMark(pid=process.pid, start_ticks=1)
    shim_client.note_family(tmp_path, [mark])
    one = returning(tmp_path, gpu)
    await one.note()
    gpu.set(22 * GIB, (process.pid, 3 * GIB), (1, GIB))
    try:
        await one.wait()  # a process that lives under that number is another one
    finally:
        process.kill()
        await process.wait()
    with pytest.raises(Failure, match=r"books 3.0 GiB on processes that are gone"):
        await one.wait()


@pytest.mark.parametrize("text", ["", "[]", '{"boot_id": "other", "free_bytes": {"GPU-a": 1}}', '{"free_bytes": 1}'])
async def test_a_note_of_another_boot_or_none_is_no_debt(tmp_path: Path, gpu: Gpu, text: str) -> None:
    (tmp_path / "devices.json").write_text(text)
    gpu.set(0)
    await returning(tmp_path, gpu).wait()


sizes = st.integers(0, 100 * GIB)
by_device = st.dictionaries(st.sampled_from("abc"), sizes)


@given(by_device, by_device, by_device)
def test_no_more_is_asked_for_than_was_promised_or_was_there(
    promised: dict[str, int], before: dict[str, int], now: dict[str, int]
) -> None:
    short = missing(promised, before, now)
    assert all(now[device] < size <= min(promised[device], before[device]) for device, size in short.items())
    assert missing(promised, before, before) == {}


@pytest.fixture
async def node(tmp_path: Path, gpu: Gpu) -> AsyncIterator[Node]:
    node = Node(tmp_path, devices=f"sim:{gpu.file}")
    try:
        yield node
    finally:
        await node.close()


async def test_no_engine_is_started_on_top_of_memory_that_is_not_back(node: Node, gpu: Gpu) -> None:
    want = nodes.want()
    del want.devices[:]
    want.devices.append(node_pb2.DevicePromise(device_id="GPU-a", bytes=20 * GIB))
    async with controllers.serving(node.control, Controller()) as controller:
        await node.start(restart_policy={"first_delay_s": 0.05, "memory_return_s": 0.5})
        await trees.until(lambda: controller.hellos)
        await controller.want(nodes.desired(1, want))
        first = await nodes.until_state(controller, "ready")
        gpu.set(2 * GIB)  # it holds 20
        os.kill(first.pid, signal.SIGKILL)
        said = await trees.until(
            lambda: (r := controller.replica("rep_one")).code == "engine.memory_not_returned" and r
        )
        assert (said.state, said.incarnation) == ("installing", 1)
        assert "no engine is started on top" in said.message
        gpu.set(22 * GIB)
        again = await trees.until(lambda: (r := controller.replica("rep_one")).state == "ready" and r)
        assert (again.incarnation, again.code) == (2, "")


async def test_a_replica_that_waits_for_its_memory_can_be_stopped(node: Node, gpu: Gpu) -> None:
    want = nodes.want()
    want.devices.append(node_pb2.DevicePromise(device_id="GPU-a", bytes=20 * GIB))
    async with controllers.serving(node.control, Controller()) as controller:
        await node.start(restart_policy={"first_delay_s": 0.05})
        await trees.until(lambda: controller.hellos)
        await controller.want(nodes.desired(1, want))
        first = await nodes.until_state(controller, "ready")
        gpu.set(2 * GIB)
        os.kill(first.pid, signal.SIGKILL)
        await nodes.until_state(controller, "installing")
        await controller.want(nodes.desired(2))
        await nodes.until_state(controller, "stopped")
