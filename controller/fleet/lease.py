"""When a silent node is suspect and when it is lost: pure.

Comes in: seconds. Goes out: a `NodeState`. Called by `controller.fleet.service`. A lease only runs while this
controller is awake: time in which it was suspended, or its loop stood still, is not held against any node.
"""

from dataclasses import dataclass

from core.states import NodeState


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
        """Lost less max(2 s, 10 %): by then the node's data plane takes no new request, whatever became of it."""
        return self.lost_s - max(2.0, 0.1 * self.lost_s)

    @property
    def tick_s(self) -> float:
        """How often leases are looked at; a gap of more than `max_step_s` between two looks was no time awake."""
        return self.heartbeat_s / 2

    @property
    def max_step_s(self) -> float:
        """The longest gap that counts."""
        return max(self.heartbeat_s, 1.0)


class AwakeClock:
    """Counts the seconds in which this process was awake, from readings of a monotonic clock."""

    def __init__(self, now: float, max_step_s: float) -> None:
        self._last = now
        self._max_step_s = max_step_s
        self._awake_s = 0.0

    def read(self, now: float) -> float:
        """Return the seconds awake until the monotonic instant `now`."""
        self._awake_s += min(max(0.0, now - self._last), self._max_step_s)
        self._last = now
        return self._awake_s


def node_state(silent_s: float, timers: Timers, *, is_heard: bool, has_left: bool) -> NodeState:
    """Return what is known of a node that has been silent for `silent_s` awake seconds.

    1. It said goodbye: offline, however long ago.
    2. Silent past the lease: lost. Of a node that was never heard of in this reign `silent_s` counts from its
       beginning, so nothing is lost before a whole lease has passed.
    3. Never heard of in this reign: suspect, since nobody knows; its replicas stay, new ones go elsewhere.
    4. Silent for more than a beat and a bit: suspect.
    5. Else ready.
    """
    if has_left:
        return NodeState.OFFLINE
    if silent_s >= timers.lost_s:
        return NodeState.LOST
    if not is_heard or silent_s >= timers.suspect_s:
        return NodeState.SUSPECT
    return NodeState.READY
