"""What this machine measures, on a connection of its own: nothing here may delay a heartbeat.

Comes in: readings of devices, the free bytes of the disk. Goes out: `NodeControl.SendTelemetry`, for as long as a
session lasts, and `latest` for whoever must not wait for a driver. Made by `node_agent.agent`, run by
`node_agent.session`. A driver that hangs, a line that is slow, a controller that does not read: each costs readings,
whose age the controller shows, and nothing else.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from core import protocols
from core.devices import DeviceReading
from core.errors import Failure
from core.infra.logs import Log
from node_agent.devices.reading import Devices
from node_agent.dialing import Way
from node_agent.inventory import disk_free_bytes, reading_message
from protos.slice.node.v1 import node_pb2, node_pb2_grpc

_WRITE_DEADLINE_S = 10.0
_PERIOD_FLOOR_S = 0.05
_PERIOD_S = 2.0  # where the controller does not say it
_BACK_OFF_BASE_S = 0.5
_BACK_OFF_CAP_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured last."""

    devices: tuple[DeviceReading, ...]
    disk_free_bytes: int


class Telemetry:
    """One node's measurements; `node_id` names it, since the unix socket does not."""

    def __init__(
        self, *, node_id: str, way: Way, devices: Devices, data_dir: Path, chance: Callable[[], float], log: Log
    ) -> None:
        self._node_id = node_id
        self._way = way
        self._devices = devices
        self._data_dir = data_dir
        self._chance = chance
        self._log = log
        self._disk_free_bytes = 0

    @property
    def latest(self) -> Measured:
        """What was measured last; never waits."""
        return Measured(devices=self._devices.latest, disk_free_bytes=self._disk_free_bytes)

    def begin(self, inventory: node_pb2.Inventory) -> None:
        """Take over what a hello says: a heartbeat that comes before the first measurement must not say 0."""
        self._disk_free_bytes = inventory.disk_free_bytes

    async def measure(self) -> Measured:
        """Read everything now; a device that does not answer within the deadline of `Devices` is left out."""
        await self._devices.readings()
        with contextlib.suppress(OSError):  # then the last figure stands
            self._disk_free_bytes = await asyncio.to_thread(disk_free_bytes, self._data_dir)
        return self.latest

    async def keep(self, ack: node_pb2.HelloAck) -> None:
        """Measure for as long as the session of `ack` lasts, and send it where that has a channel of its own."""
        period_s = max(_PERIOD_FLOOR_S, ack.telemetry_ms / 1000.0 or _PERIOD_S)
        if ack.protocol < protocols.TELEMETRY_APART:
            period_s = max(_PERIOD_FLOOR_S, ack.heartbeat_ms / 1000.0)
            while True:
                await self.measure()
                await _pause(period_s)
        failures, loop = 0, asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                async with await self._way.channel() as channel:
                    stub = node_pb2_grpc.NodeControlStub(channel)  # type: ignore[no-untyped-call]  # generated
                    await self._send(stub.SendTelemetry(metadata=self._way.metadata), ack.session_epoch, period_s)
            except (Failure, grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as error:
                if failures == 0:
                    self._log.warning("telemetry_interrupted", reason=_words(error))
            failures = 1 if loop.time() - began_s > _BACK_OFF_CAP_S else failures + 1
            await _pause(self._chance() * min(_BACK_OFF_CAP_S, _BACK_OFF_BASE_S * 2.0 ** min(failures, 16)))

    async def _send(self, call: Any, session_epoch: int, period_s: float) -> None:
        try:
            while True:
                measured = await self.measure()
                # What does not go out in time is not worth sending any more: the next dial sends what is true then.
                async with asyncio.timeout(_WRITE_DEADLINE_S):
                    await call.write(
                        node_pb2.Telemetry(
                            node_id=self._node_id,
                            session_epoch=session_epoch,
                            devices=[reading_message(reading) for reading in measured.devices],
                            disk_free_bytes=measured.disk_free_bytes,
                        )
                    )
                await _pause(period_s)
        finally:
            call.cancel()


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name.lower()}: {error.details()}"
    return str(error) or type(error).__name__


async def _pause(seconds: float) -> None:
    """Wait for the next measurement."""
    await asyncio.sleep(seconds)
