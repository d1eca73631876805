"""How often somebody may do a thing in a while: pure.

Comes in: names and instants of a monotonic clock. Goes out: how long to wait. Used against floods of failed joins,
which cost a transaction each (a token's 256 bits need no such help), and of certificates.
"""

from collections import OrderedDict


class Brake:
    """Allows each name `limit` times in `window_s` seconds; remembers at most `names_max` names, newest first."""

    def __init__(self, *, limit: int, window_s: float, names_max: int = 1000) -> None:
        self._limit = limit
        self._window_s = window_s
        self._names_max = names_max
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def wait_s(self, name: str, now: float) -> float:
        """Return for how many seconds `name` may not try again; 0 when it may."""
        recent = self._recent(name, now)
        if len(recent) < self._limit:
            return 0.0
        return min(self._window_s, recent[-self._limit] + self._window_s - now)  # never more, whatever is rounded

    def note(self, name: str, now: float) -> None:
        """Note that `name` has done it."""
        self._times[name] = [*self._recent(name, now), now][-self._limit :]
        self._times.move_to_end(name)
        while len(self._times) > self._names_max:
            self._times.popitem(last=False)

    def _recent(self, name: str, now: float) -> list[float]:
        return [instant for instant in self._times.get(name, ()) if now - instant < self._window_s]
