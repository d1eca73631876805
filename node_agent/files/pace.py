"""How fast bytes may leave, shared by all who send: pure but for its lock.

Called by `node_agent.files.serving` from several threads. A bucket that fills at the rate and holds a tenth of a
second: whoever takes more than is there waits for it, in the order in which they came.
"""

import threading
from collections.abc import Callable

_BURST_S = 0.1


class Pace:
    """`bytes_per_s` 0 is no bound."""

    def __init__(self, bytes_per_s: int, monotonic: Callable[[], float]) -> None:
        self._rate = bytes_per_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._free_at = monotonic()

    def chunk_bytes(self, most: int) -> int:
        """Return how much to send at once: what passes in a tenth of a second, at most `most`."""
        return min(most, max(4096, int(self._rate * _BURST_S))) if self._rate else most

    def take(self, count: int) -> float:
        """Take room for `count` bytes; return how many seconds to wait before they are sent."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = self._monotonic()
            begin = max(self._free_at, now - _BURST_S)
            self._free_at = begin + count / self._rate
            return max(0.0, begin - now)
