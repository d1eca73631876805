"""What the machine has: the inventory a node sends when it says hello, and its engines with every observed set.

Comes in: the data directory, devices, adapters. Goes out: protobuf. Called by `node_agent.session` at each connection.
"""

import asyncio
import os
import platform
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import psutil

from adapters.contract import Adapter, AdoptedModel, HostFacts
from core.devices import DeviceReading
from core.texts import sendable
from node_agent.devices.reading import Devices
from node_agent.engines import EngineHouse
from node_agent.engines.orders import AdoptedNow, Install, Survey
from protos.slice.node.v1 import node_pb2

_MAX_SIZE = 2**63 - 1  # what a message can say


def reading_message(reading: DeviceReading) -> node_pb2.DeviceReading:
    """Return a reading as it travels."""
    return node_pb2.DeviceReading(
        device_id=reading.device_id,
        kind=reading.kind.value,
        name=reading.name,
        total_bytes=reading.total_bytes,
        free_bytes=reading.free_bytes,
        utilisation=reading.utilisation,
        temperature_c=reading.temperature_c,
        power_w=reading.power_w,
        is_simulated=reading.is_simulated,
    )


def disk_free_bytes(data_dir: Path) -> int:
    """Return the free bytes of the data directory's file system. Blocks."""
    return shutil.disk_usage(data_dir).free


def _host_facts(readings: tuple[DeviceReading, ...], survey: Survey) -> HostFacts:
    return HostFacts(
        system=platform.system().lower(),
        machine=platform.machine(),
        cpu_count=len(os.sched_getaffinity(0)),
        memory_bytes=int(psutil.virtual_memory().total),
        devices=readings,
        executables=survey.executables,
        installed={engine: survey.ready(engine) for engine in survey.installs},
    )


class Inventory:
    """Reads the machine anew at each call."""

    def __init__(
        self, *, data_dir: Path, devices: Devices, engines: EngineHouse, adapters: Callable[[], tuple[Adapter, ...]]
    ) -> None:
        self._data_dir = data_dir
        self._devices = devices
        self._engines = engines
        self._adapters = adapters

    async def engines(self) -> list[node_pb2.EngineFact]:
        """Return which engines can run here, by the devices read last, their versions, and what others run here.

        Read anew they are in `message` and by telemetry: a report of a replica must not wait for a driver that hangs.
        """
        readings, survey = self._devices.latest, await self._engines.survey(self._adapters())
        return await asyncio.to_thread(self._engine_facts, _host_facts(readings, survey), survey)

    async def message(self) -> node_pb2.Inventory:
        """Return the inventory as it travels."""
        readings, survey = await self._devices.readings(), await self._engines.survey(self._adapters())
        return await asyncio.to_thread(self._message, readings, survey)

    def _message(self, readings: tuple[DeviceReading, ...], survey: Survey) -> node_pb2.Inventory:
        host = _host_facts(readings, survey)
        disk = shutil.disk_usage(self._data_dir)
        return node_pb2.Inventory(
            hostname=socket.gethostname(),
            system=host.system,
            machine=host.machine,
            cpu_count=host.cpu_count,
            memory_bytes=host.memory_bytes,
            disk_total_bytes=disk.total,
            disk_free_bytes=disk.free,
            devices=[reading_message(reading) for reading in readings],
            engines=self._engine_facts(host, survey),
        )

    def _engine_facts(self, host: HostFacts, survey: Survey) -> list[node_pb2.EngineFact]:
        adopted = self._engines.adoptions.now()
        return [self._fact(adapter, host, survey, adopted.get(adapter.name)) for adapter in self._adapters()]

    def _fact(
        self, adapter: Adapter, host: HostFacts, survey: Survey, adopted: AdoptedNow | None
    ) -> node_pb2.EngineFact:
        found = adapter.fingerprint(host)
        return node_pb2.EngineFact(
            engine=adapter.name,
            is_usable=found.is_usable,
            reason=found.reason,
            device_kinds=sorted(kind.value for kind in found.device_kinds),
            installed_versions=survey.ready(adapter.name),
            installs=[_install_message(install) for install in survey.installs.get(adapter.name, ())],
            adopted=None if adopted is None else _adopted_message(adopted),
        )


def _install_message(install: Install) -> node_pb2.EngineInstall:
    return node_pb2.EngineInstall(
        version=install.version,
        state=install.state.value,
        code=install.code,
        message=sendable(install.message),
        digest=install.digest,
        size_bytes=install.size_bytes,
    )


def _adopted_message(adopted: AdoptedNow) -> node_pb2.AdoptedEngine:
    return node_pb2.AdoptedEngine(
        base_url=adopted.base_url,
        version=sendable(adopted.version),
        models=[_adopted_model(model) for model in adopted.models],
        message=sendable(adopted.message),
    )


def _adopted_model(model: AdoptedModel) -> node_pb2.AdoptedModel:
    return node_pb2.AdoptedModel(
        name=sendable(model.name),
        sha256=sendable(model.sha256),
        size_bytes=min(max(model.size_bytes, 0), _MAX_SIZE),
        format=sendable(model.format),
        architecture=sendable(model.architecture),
        quantization=sendable(model.quantization),
    )
