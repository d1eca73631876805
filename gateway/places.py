"""Where the door's connections lead, as values: an engine of this machine, one elsewhere, another machine's data plane.

Pure but for the type of a TLS context. Made by `table` from what the controller says, used by the pool (`upstream`).
"""

import ssl
from dataclasses import dataclass
from typing import Protocol

from core.origins import Origin


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The data plane of another machine's node: one listener for all of its engines."""

    node_id: str
    host: str
    port: int


class Papers(Protocol):
    """What the door shows to data planes; `papers.DoorPapers` is the real one."""

    async def context(self) -> ssl.SSLContext:
        """Return the TLS context with the door's certificate, waiting until there is one."""

    def name_of(self, plane: Plane) -> str:
        """Return the name that the plane's certificate must have."""

    def is_revoked(self, serial: str) -> bool:
        """Return whether a certificate must not be trusted though it is signed and in date; `serial` is hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where one spawn of one engine listens; the incarnation keeps a reused port from sharing connections.

    `origin` is set for an engine that is not ours, `plane` for one on another machine, whose host and port are that
    machine's own.
    """

    host: str
    port: int
    replica_id: str = ""
    incarnation: int = 0
    origin: Origin | None = None
    plane: Plane | None = None

    @property
    def place(self) -> "Address | Plane":
        """What a connection leads to: a plane's may carry requests to any engine of its node."""
        return self.plane or self

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        if self.origin is not None:
            return self.origin.authority
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
