"""NVIDIA GPUs by NVML. A machine without a driver has none; a GPU that fails is left out, the others stay."""

import pynvml

from core.devices import DeviceKind, DeviceReading
from core.ids import DeviceId


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class NvmlSource:
    """Implements `DeviceSource`. NVML is started at the first reading and again after it failed."""

    def __init__(self) -> None:
        self._is_started = False

    def _start(self) -> bool:
        if not self._is_started:
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError:
                return False
            self._is_started = True
        return True

    def read(self) -> tuple[DeviceReading, ...]:
        """Return every GPU that answers."""
        if not self._start():
            return ()
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError:
            self._is_started = False  # the driver was reloaded under us
            return ()
        return tuple(reading for index in range(count) if (reading := _reading(index)) is not None)

    def memory_of(self, pids: frozenset[int]) -> int:
        """Return the sum over GPUs of what NVML books on these processes."""
        if not self._start():
            return 0
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError:
            return 0
        return sum(_held_on(index, pids) for index in range(count))


def _held_on(index: int, pids: frozenset[int]) -> int:
    try:
        users = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError:
        return 0
    return sum(int(user.usedGpuMemory or 0) for user in users if user.pid in pids)


def _reading(index: int) -> DeviceReading | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return DeviceReading(
            device_id=DeviceId(_text(pynvml.nvmlDeviceGetUUID(handle))),
            kind=DeviceKind.NVIDIA,
            name=_text(pynvml.nvmlDeviceGetName(handle)),
            total_bytes=int(memory.total),
            free_bytes=int(memory.free),
            utilisation=_utilisation(handle),
            temperature_c=_temperature(handle),
            power_w=_power(handle),
        )
    except pynvml.NVMLError:
        return None  # "GPU is lost" and its like: a device that cannot be read is not offered


def _utilisation(handle: object) -> float | None:
    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100.0
    except pynvml.NVMLError:
        return None  # MIG partitions do not say


def _temperature(handle: object) -> float | None:
    try:
        return float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError:
        return None


def _power(handle: object) -> float | None:
    try:
        return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000.0
    except pynvml.NVMLError:
        return None
