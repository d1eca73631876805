"""Looks at a changing thing until somebody has seen enough, through short outages of the controller.

A fetch comes in, its results go out one after another at a steady pace. Called by `cli.pulling` and `cli.readiness`.
"""

import threading
from collections.abc import Callable, Iterator

from cli.client import Json
from core.clock import Clock
from core.errors import Failure, Kind

PACE_S = 0.3
"""Time between two looks: quick for an eye, 3 cheap calls a second for the controller."""
OUTAGE_S = 60.0
"""Longest silence of the controller that is waited out: a restart with migrations takes less."""


def looks(fetch: Callable[[], Json], say: Callable[[str], None], clock: Clock) -> Iterator[Json]:
    """Yield what `fetch` returns, at `PACE_S`; an unavailable controller is told through `say` and waited for.

    Raises:
        Failure: `fetch` failed otherwise, or the controller stayed away for `OUTAGE_S`.
    """
    pause = threading.Event()  # nobody sets it: its wait is a timer that Ctrl-C interrupts
    last_answer = clock.monotonic()
    while True:
        try:
            found = fetch()
        except Failure as failure:
            if failure.kind is not Kind.UNAVAILABLE or clock.monotonic() - last_answer > OUTAGE_S:
                raise
            say(f"{failure.message}; trying again")
        else:
            last_answer = clock.monotonic()
            yield found
        pause.wait(PACE_S)
