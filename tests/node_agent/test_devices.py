"""Device readings: the real CPU, pretended GPUs, a driver that hangs or is absent."""

import asyncio
import contextlib
import io
import json
import threading
from pathlib import Path

import pytest

from core.devices import CPU_DEVICE, DeviceKind, DeviceReading
from core.errors import Failure
from core.ids import DeviceId
from core.infra.clock import SystemClock
from core.infra.logs import Log
from node_agent.devices import reading
from node_agent.devices.cpu import CpuSource
from node_agent.devices.nvml import NvmlSource
from node_agent.devices.simulated import SimulatedSource


def quiet() -> tuple[Log, io.StringIO]:
    stream = io.StringIO()
    return Log("test", SystemClock(), stream), stream


def test_the_cpu_has_the_machines_memory() -> None:
    (found,) = CpuSource().read()
    assert (found.device_id, found.kind) == (CPU_DEVICE, DeviceKind.CPU)
    assert found.name
    assert 0 < found.free_bytes < found.total_bytes
    assert found.utilisation is not None
    assert 0 <= found.utilisation <= 1


def test_a_machine_without_a_driver_has_no_gpus_or_real_ones() -> None:
    found = NvmlSource().read()
    assert all(device.kind is DeviceKind.NVIDIA and device.device_id.startswith("GPU-") for device in found)
    assert NvmlSource().memory_of(frozenset({1})) >= 0


def simulated(tmp_path: Path, free_bytes: int) -> Path:
    file = tmp_path / "gpus.json"
    device = {"device_id": "GPU-a", "name": "Pretended", "total_bytes": 100, "free_bytes": free_bytes, "kind": "nvidia"}
    file.write_text(json.dumps({"devices": [device]}))
    return file


async def test_pretended_gpus_are_marked_and_read_anew(tmp_path: Path) -> None:
    file = simulated(tmp_path, 80)
    devices = reading.Devices(reading.sources_of(f"sim:{file}"), quiet()[0])
    found = {device.device_id: device for device in await devices.readings()}
    assert set(found) == {CPU_DEVICE, DeviceId("GPU-a")}
    assert found[DeviceId("GPU-a")].is_simulated
    simulated(tmp_path, 30)
    assert (await devices.readings())[1].free_bytes == 30


@pytest.mark.parametrize("text", ["", "[]", '{"devices": [{}]}', '{"devices": [{"device_id": 1, "name": 2}]}'])
def test_a_bad_file_of_devices_names_itself(tmp_path: Path, text: str) -> None:
    file = tmp_path / "gpus.json"
    file.write_text(text)
    with pytest.raises(Failure, match=r"gpus\.json describes no devices"):
        SimulatedSource(file).read()


async def test_a_source_that_fails_costs_only_its_own_devices_and_is_said_once(tmp_path: Path) -> None:
    log, said = quiet()
    devices = reading.Devices(reading.sources_of(f"sim:{tmp_path / 'none.json'}"), log)
    for _ in range(3):
        assert [device.device_id for device in await devices.readings()] == [CPU_DEVICE]
    assert said.getvalue().count("devices_unreadable") == 1


class Hanging:
    """A driver call that does not return until told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.go_on = threading.Event()

    def read(self) -> tuple[DeviceReading, ...]:
        self.calls += 1
        self.go_on.wait(20)
        return ()

    def memory_of(self, pids: frozenset[int]) -> int:
        return 0


async def test_a_hanging_driver_is_called_once_and_does_not_block_the_loop() -> None:
    source = Hanging()
    lane = reading.Lane(source, deadline_s=0.05)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await lane.call(source.read)
    assert source.calls == 1
    source.go_on.set()
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(TimeoutError):
                assert await lane.call(source.read) == ()
                break
            await asyncio.sleep(0.01)


def test_an_unknown_word_for_devices_is_refused() -> None:
    with pytest.raises(Failure, match="means nothing"):
        reading.sources_of("quantum")
