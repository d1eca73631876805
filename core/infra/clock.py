"""The real clock; the only place besides the shim where time is read."""

import time
from datetime import UTC, datetime


class SystemClock:
    """Implements `core.clock.Clock` on this host."""

    def now(self) -> datetime:
        """Return the current instant in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return CLOCK_BOOTTIME where there is one: it counts suspends, so a sleeping VM's leases do expire."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
