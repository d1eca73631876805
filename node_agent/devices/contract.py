"""What every source of device readings offers."""

from typing import Protocol

from core.devices import DeviceReading


class DeviceSource(Protocol):
    """One source of readings. Both calls may block; `node_agent.devices.reading` keeps them off the event loop."""

    def read(self) -> tuple[DeviceReading, ...]:
        """Return every device of this source as it is now; none when there is none."""

    def memory_of(self, pids: frozenset[int]) -> int:
        """Return the bytes that these processes hold on this source's GPUs; 0 when it has none or cannot tell."""
