"""The CPU as a device: its memory is the machine's main memory."""

from pathlib import Path

import psutil

from core.devices import CPU_DEVICE, DeviceKind, DeviceReading


def processor_name() -> str:
    """Return the processor's name from /proc/cpuinfo, or "CPU" where it has none (many ARM machines)."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return "CPU"


class CpuSource:
    """Implements `DeviceSource`; free is MemAvailable, which counts page cache that can be given up."""

    def __init__(self) -> None:
        self._name = processor_name()
        psutil.cpu_percent(None)  # the first reading is the start of the first interval and means nothing

    def read(self) -> tuple[DeviceReading, ...]:
        """Return the one CPU device."""
        memory = psutil.virtual_memory()
        return (
            DeviceReading(
                device_id=CPU_DEVICE,
                kind=DeviceKind.CPU,
                name=self._name,
                total_bytes=int(memory.total),
                free_bytes=int(memory.available),
                utilisation=round(float(psutil.cpu_percent(None)) / 100.0, 3),
            ),
        )

    def memory_of(self, pids: frozenset[int]) -> int:
        """Return 0: main memory is measured by the process tree's PSS."""
        return 0
