"""Pretended GPUs from a JSON file, for rehearsals on machines without any.

The file is `{"devices": [{"device_id", "name", "total_bytes", "free_bytes", "kind"}]}` and is read anew each time, so a
test or an operator can change a device under a running cluster. A list `processes` of `{"pid", "bytes"}` beside it is
what a driver would book on processes, living or dead.
"""

import json
from pathlib import Path
from typing import Any

from core.devices import DeviceKind, DeviceReading
from core.errors import Failure
from core.ids import DeviceId


class SimulatedSource:
    """Implements `DeviceSource` on one file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> tuple[DeviceReading, ...]:
        """Return the file's devices, each marked as simulated.

        Raises:
            Failure: `node.devices_unreadable` naming the file.
        """
        try:
            return tuple(_reading(entry) for entry in json.loads(self._file.read_text())["devices"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Failure(
                "node.devices_unreadable",
                f"{self._file} describes no devices: {error}",
                hint='write {"devices": [{"device_id": ..., "name": ..., "total_bytes": ..., "free_bytes": ...}]}',
            ) from error

    def memory_of(self, pids: frozenset[int]) -> int:
        """Return what the file books on these processes; 0 when it says nothing that can be read."""
        try:
            booked = json.loads(self._file.read_text()).get("processes", [])
            return sum(int(entry["bytes"]) for entry in booked if int(entry["pid"]) in pids)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0


def _reading(entry: Any) -> DeviceReading:
    return DeviceReading(
        device_id=DeviceId(str(entry["device_id"])),
        kind=DeviceKind(entry.get("kind", DeviceKind.NVIDIA)),
        name=str(entry["name"]),
        total_bytes=int(entry["total_bytes"]),
        free_bytes=int(entry["free_bytes"]),
        is_simulated=True,
    )
