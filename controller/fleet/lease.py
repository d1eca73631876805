"""One node's lease as a pure machine: `step(lease, event, now, terms) -> (lease, effects)`.

Comes in: what happened to a node, and the awake seconds of this controller (`AwakeClock`): time in which it was
suspended, or its loop stood still, is not held against any node. Goes out: the next `Lease` and what its owner shall
do. Called by `controller.fleet.leases`, which the fleet's service and the simulator share. See design.md beside this
file.
"""

from dataclasses import dataclass
from typing import NamedTuple

from core.states import NodeState

FLAPS = 3
"""So many times silent and back within `FLAP_WINDOW_S`, and new replicas go to other nodes first."""
FLAP_WINDOW_S = 600.0
RESTART_GRACE_CAP_S = 60.0
DIALS_PER_S = 250.0
"""Hellos that a controller on two small cores takes in a second, measured with mTLS; N nodes need N/250 s to dial."""


@dataclass(frozen=True, kw_only=True)
class Timers:
    """The timers that follow from the heartbeat H (seconds): docs/architecture and the notes on reliability."""

    heartbeat_s: float

    @property
    def suspect_s(self) -> float:
        """2H+2: one beat may be lost and one late."""
        return 2 * self.heartbeat_s + 2

    @property
    def lost_s(self) -> float:
        """4H+3: after this a replacement may be placed."""
        return 4 * self.heartbeat_s + 3

    @property
    def fence_s(self) -> float:
        """When the node takes no new work any more, without having heard an ack: max(2 s, 10 %) before it is lost."""
        return max(self.heartbeat_s, self.lost_s - max(2.0, self.lost_s / 10))

    @property
    def tick_s(self) -> float:
        """How often leases are looked at; a gap of more than `max_step_s` between two looks was no time awake."""
        return self.heartbeat_s / 2

    @property
    def max_step_s(self) -> float:
        """The longest gap that counts."""
        return max(self.heartbeat_s, 1.0)

    def grace_s(self, nodes: int) -> float:
        """Return the extra time for `nodes` nodes to dial a controller that begins: N/250 s, at most a minute."""
        return min(RESTART_GRACE_CAP_S, nodes / DIALS_PER_S)


class AwakeClock:
    """Counts the seconds in which this process was awake, from readings of a monotonic clock."""

    def __init__(self, now: float, max_step_s: float) -> None:
        self._last = now
        self._max_step_s = max_step_s
        self._awake_s = 0.0

    def read(self, now: float) -> float:
        """Return the seconds awake until the monotonic instant `now`."""
        passed_s = now - self._last
        if passed_s > 0.0:
            self._awake_s += passed_s if passed_s < self._max_step_s else self._max_step_s
        self._last = now
        return self._awake_s


class Terms(NamedTuple):
    """What holds for all leases at once.

    Silence counts from `counts_from` (awake seconds) at the earliest: from the end of an outage of the database, in
    which no node could have been taken back. While `is_held` there is such an outage, and nothing becomes lost.
    """

    suspect_s: float
    lost_s: float
    grace_s: float = 0.0
    counts_from: float = 0.0
    is_held: bool = False


class Lease(NamedTuple):
    """What is known of one node; instants are awake seconds of this controller.

    A tuple, because a controller of a thousand nodes makes five hundred of them a second. `heard_at` is None until the
    node is heard of in this reign; `stream` is the session epoch of its living stream, 0 without one; `newest` the
    highest there ever was in this reign.
    """

    state: NodeState = NodeState.SUSPECT
    heard_at: float | None = None
    stream: int = 0
    newest: int = 0
    has_left: bool = False
    lost_at: float | None = None
    returned_at: float | None = None
    """When it came back from being lost, or from having been away for a whole lease."""
    flaps: tuple[float, ...] = ()

    def silent_s(self, now: float) -> float:
        """Return the awake seconds since it was heard of, or since this reign began."""
        return now - (self.heard_at or 0.0)

    def is_flapping(self, now: float) -> bool:
        """Return whether it has gone silent and come back so often of late that it is not to be trusted."""
        return len(self.flaps) >= FLAPS and now - self.flaps[-FLAPS] < FLAP_WINDOW_S


# -- what can happen ---------------------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """A hello was accepted and counted in the node's row as `epoch`."""

    epoch: int


class Heard(NamedTuple):
    """A message came by the stream of `epoch`."""

    epoch: int


class Left(NamedTuple):
    """The node said goodbye by the stream of `epoch`."""

    epoch: int


class Ended(NamedTuple):
    """The stream of `epoch` is no more; that says nothing of the node, whose lease runs on."""

    epoch: int


class Knocked(NamedTuple):
    """A hello came that could not be written, for want of a database: the node lives, but cannot be spoken with."""


class Looked(NamedTuple):
    """Time has passed."""


Happened = Opened | Heard | Left | Ended | Knocked | Looked


# -- what to do --------------------------------------------------------------------------------------------------------


class Changed(NamedTuple):
    """The node is in another state than before."""

    before: NodeState
    after: NodeState


class CloseStream(NamedTuple):
    """End this older stream: another has taken its place."""

    epoch: int


class Stale(NamedTuple):
    """Drop what came, or refuse the stream that was to open: a newer one lives."""


Effect = Changed | CloseStream | Stale
_NOTHING: tuple[Effect, ...] = ()


def node_state(silent_s: float, timers: Timers, *, is_heard: bool, has_left: bool) -> NodeState:
    """Return what is known of a node that has been silent for `silent_s` awake seconds; see `_state`."""
    state = NodeState.READY if is_heard else NodeState.SUSPECT
    lease = Lease(state=state, heard_at=0.0 if is_heard else None, has_left=has_left)
    return _state(lease, silent_s, Terms(suspect_s=timers.suspect_s, lost_s=timers.lost_s))


def begun(*, has_left: bool) -> Lease:
    """Return the lease of a node of a former reign: nobody knows, so it is suspect, or still offline."""
    return Lease(state=NodeState.OFFLINE if has_left else NodeState.SUSPECT, has_left=has_left)


def step(lease: Lease, event: Happened, now: float, terms: Terms) -> tuple[Lease, tuple[Effect, ...]]:
    """Return the lease after `event` at `now` and what is to be done."""
    if isinstance(event, Heard):  # first, and not by a pattern: five hundred of them come in a second
        # Fence: what an older stream still carries is neither believed nor does it keep the node alive.
        if event.epoch != lease.stream:
            return lease, (Stale(),)
        if lease.state is NodeState.READY:
            return Lease(lease.state, now, *lease[2:]), _NOTHING
        return _settled(lease, lease._replace(heard_at=now, has_left=False), now, terms)
    match event:
        case Looked():
            return _settled(lease, lease, now, terms)
        case Opened(epoch):
            return _opened(lease, epoch, now, terms)
        case Left(epoch):
            if epoch != lease.stream:
                return lease, (Stale(),)
            return _settled(lease, lease._replace(heard_at=now, has_left=True), now, terms)
        case Ended(epoch):
            return (lease._replace(stream=0) if epoch == lease.stream else lease), _NOTHING
        case _:  # Knocked
            knocked = lease._replace(heard_at=now, has_left=False)
            # Invariant: without a stream nothing is ready; alive is all that it is known to be.
            return _settled(lease, knocked if lease.stream else knocked._replace(state=NodeState.SUSPECT), now, terms)


def _opened(lease: Lease, epoch: int, now: float, terms: Terms) -> tuple[Lease, tuple[Effect, ...]]:
    if epoch <= lease.newest:
        return lease, (Stale(),)
    opened = lease._replace(heard_at=now, stream=epoch, newest=epoch, has_left=False)
    effects = (CloseStream(lease.stream),) if lease.stream else _NOTHING
    settled, more = _settled(lease, opened, now, terms)
    return settled, effects + more


def _settled(before: Lease, lease: Lease, now: float, terms: Terms) -> tuple[Lease, tuple[Effect, ...]]:
    """Return `lease` in the state that it has come to, with the marks that a change of state leaves."""
    state = _state(lease, now, terms)
    if state is before.state:
        return (lease if lease.state is state else lease._replace(state=state)), _NOTHING
    lease = lease._replace(state=state)
    if state is NodeState.LOST:
        lease = lease._replace(lost_at=now)
    elif before.state is NodeState.LOST or _was_away(before, now, terms):
        lease = lease._replace(lost_at=None, returned_at=now)
    if state is NodeState.READY and before.heard_at is not None and before.state is not NodeState.OFFLINE:
        recent = tuple(at for at in lease.flaps[1 - FLAPS :] if now - at < FLAP_WINDOW_S)
        lease = lease._replace(flaps=(*recent, now))
    return lease, (Changed(before.state, state),)


def _was_away(before: Lease, now: float, terms: Terms) -> bool:
    """Return whether an offline node stayed away for a whole lease: its replicas have been replaced."""
    return before.state is NodeState.OFFLINE and before.heard_at is not None and before.silent_s(now) >= terms.lost_s


def _state(lease: Lease, now: float, terms: Terms) -> NodeState:
    """Return the state that follows from the silence.

    1. It said goodbye: offline, however long ago.
    2. Silent past the lease: lost. Of a node that was never heard of in this reign the silence counts from its
       beginning, and all of them are given the time to dial, so nothing is lost before a whole lease has passed. What
       was lost stays lost until it is heard of.
    3. Never heard of in this reign, or without a stream since an outage: suspect, since nobody knows; its replicas
       stay, new ones go elsewhere.
    4. Silent for more than a beat and a bit: suspect.
    5. Else ready.
    """
    if lease.has_left:
        return NodeState.OFFLINE
    heard_at = lease.heard_at
    counted_s = now - max(heard_at or 0.0, terms.counts_from)
    limit_s = terms.lost_s if heard_at is not None else terms.lost_s + terms.grace_s
    is_past = counted_s >= limit_s and not terms.is_held
    if is_past or (lease.lost_at is not None and (heard_at is None or heard_at < lease.lost_at)):
        return NodeState.LOST
    if heard_at is None or now - heard_at >= terms.suspect_s:
        return NodeState.SUSPECT
    if lease.state is NodeState.SUSPECT and not lease.stream:
        return NodeState.SUSPECT
    return NodeState.READY


def is_fresh(lease: Lease, now: float, terms: Terms) -> bool:
    """Return whether a look at `now` finds nothing new in a ready lease: it was heard of a moment ago."""
    return lease.state is NodeState.READY and lease.heard_at is not None and now - lease.heard_at < terms.suspect_s


def spared(lease: Lease, since: float) -> Lease:
    """Return `lease` not lost if it became lost at or after `since`: nobody can have written that down.

    For the beginning of an outage of the database, which is noticed after it began.
    """
    if lease.lost_at is None or lease.lost_at < since:
        return lease
    return lease._replace(state=NodeState.SUSPECT, lost_at=None)
