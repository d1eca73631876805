"""The watch over what one engine's process tree weighs.

Comes in: the mark of the shim, as soon as it is known. Goes out: bytes to the replica's owner whenever they change, and
the tree's members to `family.json`. Run by `node_agent.runner` for as long as the engine lives. A disk or a device that
refuses must not end it: the weight is for information, the engine serves on.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from core.errors import Failure
from core.infra.logs import Log
from core.infra.processes import ProcessMark
from node_agent import measure, shim_client
from node_agent.devices.reading import Devices

_MEASURE_EVERY_S = 5.0
_FIRST_MEASURE_S = 1.0
_TELL_SHARE = 0.01  # a change below one per cent is not worth a message


class MemoryWatch:
    """Measures one engine: on its GPUs when it `uses_gpu`, else in main memory."""

    def __init__(self, *, record_dir: Path, uses_gpu: bool, devices: Devices, log: Log) -> None:
        self._record_dir = record_dir
        self._uses_gpu = uses_gpu
        self._devices = devices
        self._log = log
        self._noted: list[ProcessMark] = []
        self._forever = asyncio.Event()  # never set: waiting on it with a timeout is a timer

    async def run(self, shim: Callable[[], ProcessMark | None], tell: Callable[[int], None]) -> None:
        """Measure every 5 s until cancelled; `tell` hears the bytes when they changed by one per cent or more."""
        told = 0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._forever.wait(), _MEASURE_EVERY_S if told else _FIRST_MEASURE_S)
            root = shim()
            if root is None:
                continue
            try:
                measured = await self._measured(root)
            except (OSError, Failure) as error:
                self._log.warning("not_measured", directory=self._record_dir.name, reason=str(error))
                continue
            if abs(measured - told) > told * _TELL_SHARE:
                told = measured
                tell(measured)

    async def _measured(self, shim: ProcessMark) -> int:
        members = await asyncio.to_thread(measure.tree_below, shim)
        if members != self._noted:
            await asyncio.to_thread(shim_client.note_family, self._record_dir, members)
            self._noted = members
        if self._uses_gpu:
            return await self._devices.memory_of(frozenset(member.pid for member in members))
        return await asyncio.to_thread(measure.pss_bytes, members)
