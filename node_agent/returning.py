"""Device memory that a dead engine held: whether it is back before the next one is started.

Comes in: the promises of a replica, what was free before its last spawn, the devices as they are now. Goes out:
nothing, once the memory is back; else `engine.memory_not_returned`. Called by `node_agent.runtimes.process` before a
spawn. A driver gives memory back some time after the last process of a tree is gone, or never; an engine that is
started on top of it dies of it, round after round (NVIDIA-NeMo/RL PR 3592: 115 GiB held over five restarts).
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from core.devices import CPU_DEVICE
from core.errors import Failure
from core.infra import cluster, processes
from core.units import text_from_bytes
from node_agent import shim_client
from node_agent.devices.reading import Devices
from protos.slice.node.v1 import node_pb2

_LOOK_S = 0.25
_SHARE = 0.95
"""What must be back of what there was: drivers keep a little for themselves, and it is not always the same."""
_FILE = "devices.json"


def missing(promised: Mapping[str, int], before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """Return, by device, the bytes that must be free for the next spawn and are not.

    That is what the replica is promised, or what was free `before` its last spawn where that was less: it was enough
    then, whoever else uses the device. A device of which nothing is known, before or `now`, is not missed.
    """
    needed = {device: min(size, before[device]) for device, size in promised.items() if device in before}
    return {device: size for device, size in needed.items() if device in now and now[device] < size * _SHARE}


class Returning:
    """One replica's device memory between two of its engines. `within_s` is how long it may take to come back."""

    def __init__(
        self, *, promises: list[node_pb2.DevicePromise], directory: Path, devices: Devices, within_s: float
    ) -> None:
        self._promised = {one.device_id: one.bytes for one in promises if one.device_id != CPU_DEVICE}
        self._directory = directory
        self._devices = devices
        self._within_s = within_s
        self._forever = asyncio.Event()  # never set: waiting on it with a timeout is a timer

    async def note(self) -> None:
        """Write down what is free now, right before a spawn.

        Raises:
            Failure: `cluster.data_dir_unusable`.
        """
        if self._promised:
            noted = {"boot_id": shim_client.boot_id(), "free_bytes": await self._free()}
            await asyncio.to_thread(cluster.write_private, self._directory / _FILE, json.dumps(noted))

    async def wait(self) -> None:
        """Return when what the last engine held is back.

        Raises:
            Failure: `engine.memory_not_returned` when it is not within the time it may take.
        """
        before = await asyncio.to_thread(self._noted) if self._promised else {}
        if not before:
            return
        short: dict[str, int] = {}
        try:
            async with asyncio.timeout(self._within_s):
                while short := await self._short(before):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._forever.wait(), _LOOK_S)
        except TimeoutError:
            raise self._failure(short) from None

    def _noted(self) -> dict[str, int]:
        try:
            noted = json.loads((self._directory / _FILE).read_text())
            free = {str(device): int(size) for device, size in noted["free_bytes"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return free if noted["boot_id"] == shim_client.boot_id() else {}

    async def _free(self) -> dict[str, int]:
        readings = await self._devices.readings()
        return {one.device_id: one.free_bytes for one in readings if one.device_id in self._promised}

    async def _short(self, before: Mapping[str, int]) -> dict[str, int]:
        """Return the bytes that are not back by device, or by "" those that the driver books on dead processes."""
        members = await asyncio.to_thread(shim_client.noted_family, self._directory)
        dead = frozenset(member.pid for member in members if processes.mark(member.pid) is None)
        held = await self._devices.memory_of(dead) if dead else 0
        return missing(self._promised, before, await self._free()) or ({"": held} if held else {})

    def _failure(self, short: Mapping[str, int]) -> Failure:
        (device, size), *_ = short.items() or [("", 0)]
        if device:
            what = f"{device} still has less than {text_from_bytes(size)} free"
        else:
            what = f"the driver books {text_from_bytes(size)} on processes that are gone"
        return Failure(
            "engine.memory_not_returned",
            f"the memory of the engine that ended is not back after {self._within_s:.0f} s: {what}; no engine is "
            "started on top of it",
            hint="see nvidia-smi for what holds it; a device that keeps it without a process needs a reset",
        )
