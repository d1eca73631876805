"""All devices of the node, read off the event loop and under a deadline.

Comes in: the `devices` setting. Goes out: readings. Called by `node_agent.telemetry`, `node_agent.inventory`
and `node_agent.runner` (memory). A driver that hangs costs its own devices only, never the loop nor the process's end.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from core.devices import DeviceReading
from core.errors import Failure
from core.infra.logs import Log
from node_agent.devices.contract import DeviceSource
from node_agent.devices.cpu import CpuSource
from node_agent.devices.nvml import NvmlSource
from node_agent.devices.simulated import SimulatedSource

T = TypeVar("T")
_DEADLINE_S = 5.0


def sources_of(setting: str) -> tuple[DeviceSource, ...]:
    """Return the sources that `setting` means: `auto` (CPU and NVML), `cpu`, or `sim:FILE` (CPU and that file).

    Raises:
        Failure: `settings.invalid`.
    """
    if setting == "cpu":
        return (CpuSource(),)
    if setting == "auto":
        return (CpuSource(), NvmlSource())
    if setting.startswith("sim:"):
        return (CpuSource(), SimulatedSource(Path(setting.removeprefix("sim:"))))
    raise Failure(
        "settings.invalid", f"devices = {setting!r} means nothing", hint="use auto, cpu or sim:FILE", param="devices"
    )


class Lane:
    """One source and the thread that reads it; while a call hangs, no further one is begun."""

    def __init__(self, source: DeviceSource, deadline_s: float = _DEADLINE_S) -> None:
        self.source = source
        self._deadline_s = deadline_s
        self._pending: asyncio.Future[object] | None = None
        self._is_hanging = False

    async def call(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, from a thread of its own.

        Raises:
            TimeoutError: it, or a call before it, has not returned within the deadline. Whatever `work` raises.
        """
        loop = asyncio.get_running_loop()
        if self._is_hanging and self._pending is not None and not self._pending.done():
            raise TimeoutError  # at once: heartbeats must not wait for a dead driver each time
        async with asyncio.timeout(self._deadline_s):
            while self._pending is not None and not self._pending.done():
                await asyncio.wait({self._pending})
        answer: asyncio.Future[T] = loop.create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # its waiter may have left
        self._pending = answer  # type: ignore[assignment]  # only whether it is done is ever asked

        def settle(value: T | None, error: Exception | None) -> None:
            if not answer.done():
                answer.set_exception(error) if error else answer.set_result(value)  # type: ignore[arg-type]

        def body() -> None:
            value, problem = None, None
            try:
                value = work()
            except Exception as error:  # noqa: BLE001 - the thread's outermost frame; the waiter gets it
                problem = error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
                loop.call_soon_threadsafe(settle, value, problem)

        # A daemon thread: one that hangs in a driver must not keep the process from ending.
        threading.Thread(target=body, name="devices", daemon=True).start()
        self._is_hanging = False
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asyncio.shield(answer)
        except TimeoutError:
            self._is_hanging = True
            raise


class Devices:
    """The node's devices; a source that fails or hangs is left out of an answer and logged once per change."""

    def __init__(self, sources: Sequence[DeviceSource], log: Log) -> None:
        self._lanes = [Lane(source) for source in sources]
        self._log = log
        self._broken: set[str] = set()
        self.latest: tuple[DeviceReading, ...] = ()
        """What `readings` returned last, for whoever must not wait."""

    async def readings(self) -> tuple[DeviceReading, ...]:
        """Return every device that answers within 5 s; of two with one id the later source's counts."""
        found = await asyncio.gather(*(self._read(lane) for lane in self._lanes))
        self.latest = tuple({reading.device_id: reading for readings in found for reading in readings}.values())
        return self.latest

    async def memory_of(self, pids: frozenset[int]) -> int:
        """Return the bytes these processes hold on GPUs."""
        total = 0
        for lane in self._lanes:
            try:
                total += await lane.call(lambda source=lane.source: source.memory_of(pids))  # type: ignore[misc]
            except TimeoutError:
                continue
        return total

    async def _read(self, lane: Lane) -> tuple[DeviceReading, ...]:
        name = type(lane.source).__name__
        try:
            readings = await lane.call(lane.source.read)
        except (TimeoutError, Failure) as error:
            if name not in self._broken:
                self._broken.add(name)
                self._log.warning("devices_unreadable", source=name, reason=str(error) or "no answer in time")
            return ()
        self._broken.discard(name)
        return readings
