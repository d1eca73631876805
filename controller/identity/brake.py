"""How often somebody may fail in a while: pure.

Comes in: names and instants of a monotonic clock. Goes out: how long to wait. Used against floods of joins, which cost
a transaction each; a token's 256 bits need no such help.
"""

from collections import OrderedDict


class Brake:
    """Allows each name `limit` failures in `window_s` seconds; remembers at most `names_max` names, newest first."""

    def __init__(self, *, limit: int, window_s: float, names_max: int = 1000) -> None:
        self._limit = limit
        self._window_s = window_s
        self._names_max = names_max
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def wait_s(self, name: str, now: float) -> float:
        """Return for how many seconds `name` may not try again; 0 when it may."""
        recent = self._recent(name, now)
        return recent[-self._limit] + self._window_s - now if len(recent) >= self._limit else 0.0

    def failed(self, name: str, now: float) -> None:
        """Note that `name` has failed."""
        self._failures[name] = [*self._recent(name, now), now][-self._limit :]
        self._failures.move_to_end(name)
        while len(self._failures) > self._names_max:
            self._failures.popitem(last=False)

    def _recent(self, name: str, now: float) -> list[float]:
        return [instant for instant in self._failures.get(name, ()) if now - instant < self._window_s]
