"""The simulated network between nodes and controllers: delay, loss, duplication, partitions of one way or both.

It behaves as TCP does. What goes by one stream in one direction keeps its order; a lost packet is a pause, in which all
behind it wait; what is sent into a partition comes when it heals, if that is before somebody gives up, and also when
the sender has long dialled anew; a dial into a partition is never heard. A second copy of a desired set may come much
later than the first, which gRPC cannot do: it is there so that the fences are really tried.
"""

from collections.abc import Callable, Iterable
from typing import Any

from tests.scenarios.world import Process, World

Way = tuple[str, str]
_CONGESTION = (0.2, 1.0, 1.0, 4.0)
"""How much slower than usual a connection is: one may be congested while the next is not."""


class Line:
    """One connection: its delay in seconds, and when the last message of each sender arrives."""

    __slots__ = ("lag_s", "last")

    def __init__(self, lag_s: float) -> None:
        self.lag_s = lag_s
        self.last: dict[str, float] = {}


class Network:
    """All lines of the cluster; `cut` holds the directions (sender, receiver) that are a black hole now."""

    def __init__(self, world: World, *, delay_s: float, loss: float, duplication: float) -> None:
        self._world, self._random = world, world.chance.random
        self._delay_s, self.loss, self.duplication = delay_s, loss, duplication
        self.cut: set[Way] = set()
        self._lines: dict[int, Line] = {}
        self._stuck: list[tuple[Way, int, Process, Callable[..., None], tuple[Any, ...]]] = []

    def is_cut(self, way: Way) -> bool:
        """Return whether nothing comes through that way."""
        return bool(self.cut) and ((way[0], "*") in self.cut or way in self.cut)

    def heal(self, ways: Iterable[Way]) -> None:
        """Join what was cut: what was under way is sent again."""
        self.cut.difference_update(ways)
        stuck, self._stuck = self._stuck, []
        for way, stream, owner, action, given in stuck:
            self.send(way, stream, owner, action, *given)

    def dial(self, way: Way, stream: int, owner: Process, action: Callable[..., None], *given: Any) -> None:
        """Deliver the first message of a stream, unless the line is cut: then nobody ever hears of it."""
        if not self.is_cut(way):
            self.send(way, stream, owner, action, *given)

    def send(
        self,
        way: Way,
        stream: int,
        owner: Process,
        action: Callable[..., None],
        *given: Any,
        is_repeatable: bool = False,
    ) -> None:
        """Deliver to `owner` what `way[0]` sends to `way[1]` by `stream`, late, or twice, or when the line is back."""
        if self.cut and self.is_cut(way):
            self._stuck.append((way, stream, owner, action, given))
            return
        world, random = self._world, self._random
        line = self._lines.get(stream)
        if line is None:
            line = self._lines[stream] = Line(self._delay_s * world.chance.choice(_CONGESTION))
        due = world.now + line.lag_s * (0.5 + random())
        if self.loss and random() < self.loss:
            due += world.chance.choice((0.2, 0.6, 1.4, 3.0))  # as often as it is sent again, with doubling pauses
        last, sender = line.last, way[0]
        earlier = last.get(sender, 0.0)
        last[sender] = due = due if due > earlier else earlier
        world.put(due, owner, action, given)
        if is_repeatable and self.duplication and random() < self.duplication:
            world.put(due + random() * 20.0, owner, action, given)

    def forget(self, stream: int) -> None:
        """Drop what is known of a stream that has ended."""
        self._lines.pop(stream, None)
