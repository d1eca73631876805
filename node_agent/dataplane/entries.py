"""Which engine of this node may be reached under which name, on which paths: values, and the maps made of them.

Pure. Called by `node_agent.runner` (what a replica is reached by) and `node_agent.dataplane.plane`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from adapters.contract import OPENAI_PATHS, Adapter, Settings

_SERIAL = re.compile(r"[0-9a-f]{1,40}")  # RFC 5280, 4.1.2.2: at most 20 octets
_KEY = re.compile(r"[A-Za-z0-9][!-~]*")  # what HAProxy's map files hold: no blank, no '#' at its beginning

MapLine = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class PlaneEntry:
    """One spawn of one replica: the loopback port its engine listens on and the exact paths that doors may POST to."""

    replica_id: str
    incarnation: int
    port: int
    paths: tuple[str, ...]

    @property
    def spawn(self) -> str:
        """The map key: another spawn of the same replica has another one, so a stale request finds nothing."""
        return f"{self.replica_id}/{self.incarnation}"


def paths_of(adapter: Adapter, settings: Settings, prefix: str = "") -> tuple[str, ...]:
    """Return the paths that the front door may ask for of an engine with these settings."""
    paths = adapter.dialect.paths
    return tuple(sorted({prefix + paths.get(one, OPENAI_PATHS[one]) for one in adapter.endpoints(settings)}))


def routes(entries: Iterable[PlaneEntry]) -> tuple[MapLine, ...]:
    """Return the map from a spawn to its port; what the map could not hold is left out, so nobody reaches it."""
    return _sorted((entry.spawn, entry.port) for entry in entries if entry.port)


def allowed(entries: Iterable[PlaneEntry]) -> tuple[MapLine, ...]:
    """Return the map of the paths that each spawn answers: its key is the spawn's with the path behind it."""
    return _sorted((entry.spawn + path, 1) for entry in entries for path in entry.paths if path.startswith("/"))


def revoked(serials: Iterable[str]) -> tuple[MapLine, ...]:
    """Return the map of revoked certificates: its key is the serial as HAProxy's `hex` writes it, in whole bytes."""
    return _sorted((f"0{serial}"[len(serial) % 2 == 0 :].upper(), 1) for serial in serials if _SERIAL.fullmatch(serial))


def _sorted(lines: Iterable[MapLine]) -> tuple[MapLine, ...]:
    return tuple(sorted(line for line in lines if _KEY.fullmatch(line[0])))


def file_text(lines: Iterable[MapLine]) -> str:
    """Return `lines` as a map file, or as the payload of `add map`."""
    return "".join(f"{key} {value}\n" for key, value in lines)
