"""Devices that hold models: one GPU, or the CPU with the machine's main memory."""

from dataclasses import dataclass
from enum import StrEnum

from core.ids import DeviceId


class DeviceKind(StrEnum):
    """What sort of device it is; engines say which sorts they can use."""

    CPU = "cpu"
    NVIDIA = "nvidia"


@dataclass(frozen=True, kw_only=True)
class DeviceReading:
    """One device as its node sees it now.

    `total_bytes` and `free_bytes` are what the device itself says (NVML, or /proc/meminfo's MemAvailable for the CPU),
    other programs' use included. `utilisation` is 0 to 1, or None when unknown.
    """

    device_id: DeviceId
    kind: DeviceKind
    name: str
    total_bytes: int
    free_bytes: int
    utilisation: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    is_simulated: bool = False


CPU_DEVICE = DeviceId("cpu")
"""The id of a node's CPU device; GPUs are known by their NVML UUID."""
