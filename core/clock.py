"""The clock as everybody sees it; the real one is `core.infra.clock.SystemClock`, tests bring their own."""

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Two readings of time that never mix: instants for people, seconds for deadlines."""

    def now(self) -> datetime:
        """Return the current instant, aware, in UTC."""

    def monotonic(self) -> float:
        """Return seconds that only grow and count suspends; meaningful only as differences on this host."""
