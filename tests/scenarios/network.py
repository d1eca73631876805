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


class Network:
    """All lines of the cluster; `cut` holds the directions (sender, receiver) that are a black hole now."""

    def __init__(self, world: World, *, delay_s: float, loss: float, duplication: float) -> None:
        self._world = world
        self._delay_s, self.loss, self.duplication = delay_s, loss, duplication
        self.cut: set[Way] = set()
        self._last: dict[tuple[int, str], float] = {}
        self._lag: dict[int, float] = {}
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
        world, chance = self._world, self._world.chance
        if self.cut and self.is_cut(way):
            self._stuck.append((way, stream, owner, action, given))
            return
        lag = self._lag.get(stream)
        if lag is None:  # one connection may be congested while the next is not
            lag = self._lag[stream] = self._delay_s * chance.choice((0.2, 1.0, 1.0, 4.0))
        due = world.now + lag * (0.5 + chance.random())
        if self.loss and chance.random() < self.loss:
            due += chance.choice((0.2, 0.6, 1.4, 3.0))  # as often as it is sent again, with doubling pauses
        key = (stream, way[0])
        due = max(due, self._last.get(key, 0.0))
        self._last[key] = due
        world.at(due, owner, action, *given)
        if is_repeatable and self.duplication and chance.random() < self.duplication:
            world.at(due + chance.random() * 20.0, owner, action, *given)

    def forget(self, stream: int, server: str, node: str) -> None:
        """Drop what is known of a stream that has ended."""
        self._last.pop((stream, server), None)
        self._last.pop((stream, node), None)
        self._lag.pop(stream, None)
