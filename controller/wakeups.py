"""How services tell the reconcile loop that something changed: one event, many reasons, one pass.

Implements `core.ports.Wakeups`. Called from the event loop only.
"""

import asyncio


class LoopWakeups:
    """Collects reasons until the loop takes them; a wake-up is never lost and never queued twice."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._reasons: dict[str, None] = {}

    def wake(self, reason: str) -> None:
        """Ask for a pass soon."""
        self._reasons[reason] = None
        self._event.set()

    async def take(self, timeout_s: float) -> tuple[str, ...]:
        """Wait for a reason, at most `timeout_s` seconds, and return all that came together; empty at the deadline."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._event.wait()
        except TimeoutError:
            return ()
        reasons = tuple(self._reasons)
        self._reasons.clear()
        self._event.clear()
        return reasons
