"""When a node dials again: after a back-off, or, where nobody listens, as soon as somebody does.

Comes in: looks at the controller's port. Goes out: waits. Used by `node_agent.session`, which dials. A controller whose
port refuses has ended and is most likely being started again: a look costs next to nothing, a dial that fails costs a
hello, and a back-off that doubles would be spent asleep when the controller is there.
"""

from collections.abc import Awaitable, Callable

SPREAD_S = 0.25
"""The nodes of a small cluster come back within so long of their controller."""
_SPREAD_CAP_S = 60.0
_LOOK_CAP_S = 5.0
_LOOK_LEAST_S = 0.01
_DIAL_EVERY_S = 5.0
"""Even where nobody listens: a dial tells more than a look, e.g. that our own certificate has run out."""


def look_s(gone_s: float, spread_s: float, chance: float) -> float:
    """Return the wait before the next look at a port that has refused for `gone_s` seconds.

    Anything up to `spread_s`, so that all nodes do not come at once, or up to a tenth of the time that the controller
    has been away, at most 5 s: whoever comes late is late by a tenth, and a controller that is away for a week costs
    little.
    """
    return max(_LOOK_LEAST_S, chance * max(spread_s, min(_LOOK_CAP_S, gone_s / 10)))


class Redialling:
    """One node's waits between its dials; instants are `now`'s seconds.

    `pause` waits so many seconds, or less when the node is to leave. `extended` hears that nobody reigns, and returns
    within how many seconds to look again.
    """

    def __init__(
        self,
        *,
        is_refused: Callable[[], Awaitable[bool]],
        extended: Callable[[], float],
        pause: Callable[[float], Awaitable[None]],
        is_leaving: Callable[[], bool],
        now: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._is_refused = is_refused
        self._extended = extended
        self._pause = pause
        self._is_leaving = is_leaving
        self._now = now
        self._chance = chance
        self._spread_s = SPREAD_S
        self._gone_at: float | None = None

    def opened(self, spread_s: float) -> None:
        """Note that a session is open, and over how many seconds its controller wants its nodes to come back."""
        self._gone_at = None
        self._spread_s = min(_SPREAD_CAP_S, max(SPREAD_S, spread_s))

    async def rest(self, wait_s: float) -> bool:
        """Wait until the next dial is due; return whether it is due because somebody listens again.

        1. The port does not refuse: after `wait_s`.
        2. It does: when a look finds that it does not any more, and else after 5 s, or after `wait_s` if that is more.
        """
        if not await self._is_refused():
            self._gone_at = None
            await self._pause(max(_LOOK_LEAST_S, wait_s))
            return False
        began = self._now()
        gone_at = self._gone_at = began if self._gone_at is None else self._gone_at
        while not self._is_leaving() and self._now() - began < max(wait_s, _DIAL_EVERY_S):
            again_s = self._extended()  # a controller that is gone must not take its models with it
            await self._pause(min(again_s, look_s(self._now() - gone_at, self._spread_s, self._chance())))
            if not await self._is_refused():
                self._gone_at = None
                return True
        return False
