"""The simulated world: one heap of what will happen, one clock, one seeded source of chance.

Nothing waits and nothing runs at the same time as anything else: the same seed gives the same run, to the last event.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from typing import Any

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Violation(AssertionError):
    """An invariant does not hold; the message names it first."""


@dataclass(frozen=True, kw_only=True)
class Fences:
    """Which fences hold; a test switches one off to see that a seed notices."""

    leader_epoch: bool = True
    session_epoch: bool = True
    generation: bool = True
    incarnation: bool = True


class Process:
    """Something that may die, or be suspended with its machine; what is due meanwhile comes when it wakes."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.is_alive = True
        self.asleep_until = 0.0
        self.wall_offset_s = 0.0

    def wall(self) -> datetime:
        """Return what this machine takes for the time of day."""
        return EPOCH + timedelta(seconds=self.world.now + self.wall_offset_s)

    def after(self, seconds: float, action: Callable[..., None], *given: Any) -> None:
        """Do `action` so many seconds from now, if this process still lives then."""
        self.world.put(self.world.now + seconds, self, action, given)


class World:
    """The heap. `trace` keeps the last words, for the message of a violation."""

    def __init__(self, seed: int, fences: Fences) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.fences = fences
        self.events = 0
        self._heap: list[tuple[float, int, Process | None, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self.trace: deque[str] = deque(maxlen=40)

    def at(self, instant: float, owner: Process | None, action: Callable[..., None], *given: Any) -> None:
        """Do `action` at `instant`, for `owner` if it lives then."""
        self.put(instant, owner, action, given)

    def put(self, instant: float, owner: Process | None, action: Callable[..., None], given: tuple[Any, ...]) -> None:
        """Do as `at` does, with what is given in one piece: millions of messages go this way."""
        self._number = number = self._number + 1
        heappush(self._heap, (instant, number, owner, action, given))

    def run_until(self, end: float, check: Callable[[], None] | None = None) -> None:
        """Let everything happen that is due before `end`, and `check` after each event."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            instant, _, owner, action, given = heappop(heap)
            self.now = instant
            if owner is not None:
                if not owner.is_alive:
                    continue
                if instant < owner.asleep_until:
                    self.put(owner.asleep_until, owner, action, given)
                    continue
            self.events += 1
            action(*given)
            if check is not None:
                check()
        self.now = end

    def say(self, words: str) -> None:
        """Keep a sentence for the story of a violation."""
        self.trace.append(f"{self.now:9.3f} {words}")

    def violated(self, invariant: str, words: str) -> None:
        """End the run.

        Raises:
            Violation: always.
        """
        raise Violation(f"{invariant}: {words}\n" + "\n".join(self.trace))
