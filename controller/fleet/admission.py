"""Who of those that say hello at once is taken, who waits, and who comes again later: pure.

Comes in: a hello's node and whether it was here before, batches that are done, instants of a monotonic clock, chances.
Goes out: the next `Desk` and a verdict. Called by `controller.fleet.reception`. A hello that waits costs memory alone,
so as many wait as can be taken before their nodes lose patience; only the rest is sent away, each with an instant of
its own, so that they come back as fast as they can be taken and not together.
"""

from dataclasses import dataclass
from typing import NamedTuple

from controller.fleet.model import Refuse

BUSY = "node.controller_busy"
PACE_FIRST, PACE_LEAST, PACE_MOST = 200.0, 20.0, 2000.0
"""Hellos taken in a second: what is believed before anything was measured, and the bounds of what is believed then."""
_PACE_SHARE = 0.3
"""How much of what is believed a new measurement replaces."""
RETRY_LEAST_S, RETRY_MOST_S = 0.2, 6.0
"""A node that stays away for so long and is taken then has lost nothing: lease and fence of the default heartbeat are
11 and 9 s."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """`at_once` hellos are written together, one batch at a time; `waiting` wait at most, `strangers` of them new.

    Nobody waits who would be taken only after `wait_s` seconds: a node gives up after 10 s (`node_agent.session`).
    """

    at_once: int = 64
    waiting: int = 1024
    strangers: int = 128
    wait_s: float = 3.0


class Desk(NamedTuple):
    """How many are being written, how many wait (known ones and strangers), and until when comebacks are booked."""

    handled: int = 0
    known: int = 0
    strangers: int = 0
    pace: float = PACE_FIRST
    booked_until: float = 0.0

    @property
    def waiting(self) -> int:
        """All that wait."""
        return self.known + self.strangers


class Waits(NamedTuple):
    """Verdict: it gets a place."""


class ComesAgain(NamedTuple):
    """Verdict: it is sent away for `after_s` seconds."""

    after_s: float


Verdict = Waits | ComesAgain


def knocked(desk: Desk, now: float, *, is_known: bool, chance: float, bounds: Bounds) -> tuple[Desk, Verdict]:
    """Return the verdict on a hello at `now`; `chance` is from 0 to 1.

    1. No place is left, or for a stranger none of those that strangers may have: it comes again.
    2. Those before it (all that are handled; for a known node the known ones that wait, for a stranger all) take more
       than the patience of a node: it comes again.
    3. Else it waits.
    Who comes again gets the next instant at which one could be taken, after those that wait and those that were sent
    away before it, give or take a tenth of a second; past the longest absence, any instant in its second half.
    """
    before = desk.handled + (desk.known if is_known else desk.waiting)
    is_full = desk.waiting >= bounds.waiting or (not is_known and desk.strangers >= bounds.strangers)
    if not is_full and before / desk.pace <= bounds.wait_s:
        if is_known:
            return desk._replace(known=desk.known + 1), Waits()
        return desk._replace(strangers=desk.strangers + 1), Waits()
    first = now + (desk.handled + desk.waiting) / desk.pace
    slot = max(first, desk.booked_until)
    after_s = slot - now + 0.1 * chance
    if after_s > RETRY_MOST_S:
        return desk, ComesAgain(RETRY_MOST_S * (1.0 + chance) / 2)
    return desk._replace(booked_until=slot + 1.0 / desk.pace), ComesAgain(max(RETRY_LEAST_S, after_s))


def left(desk: Desk, *, is_known: bool) -> Desk:
    """Return the desk when one that waited is gone by itself."""
    if is_known:
        return desk._replace(known=desk.known - 1)
    return desk._replace(strangers=desk.strangers - 1)


def taken(desk: Desk, bounds: Bounds) -> tuple[Desk, int, int]:
    """Return the desk after the next batch is taken, and how many known ones and strangers it has: known ones first."""
    room = bounds.at_once - desk.handled
    known = min(desk.known, room)
    strangers = min(desk.strangers, room - known)
    after = desk._replace(
        handled=desk.handled + known + strangers, known=desk.known - known, strangers=desk.strangers - strangers
    )
    return after, known, strangers


def done(desk: Desk, count: int, took_s: float, bounds: Bounds) -> Desk:
    """Return the desk when a batch of `count` is written; a large one tells the pace."""
    after = desk._replace(handled=desk.handled - count)
    if count * 2 < bounds.at_once or took_s <= 0:
        return after
    seen = min(PACE_MOST, max(PACE_LEAST, count / took_s))
    return after._replace(pace=desk.pace + _PACE_SHARE * (seen - desk.pace))


def refusal(verdict: ComesAgain, desk: Desk) -> Refuse:
    """Return what one that comes again is told."""
    return Refuse(
        code=BUSY,
        message=f"{desk.handled + desk.waiting} nodes say hello at once",
        hint="nothing is wrong: the node dials again by itself",
        retry_after_ms=round(verdict.after_s * 1000),
    )
