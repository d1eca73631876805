"""Every node's lease, the brake and the awake clock together: the whole of the fleet's decisions, without any I/O.

Comes in: events of nodes and readings of a monotonic clock. Goes out: effects, states, and `changes`. Called by
`controller.fleet.service`, which adds sessions, rows and wake-ups, and by the simulator in `tests/scenarios`.
"""

from collections.abc import Iterator

from controller.fleet import brake as brakes
from controller.fleet import lease as machine
from controller.fleet.brake import Brake
from controller.fleet.lease import AwakeClock, Changed, Effect, Happened, Lease, Looked, Terms, Timers
from core.ids import NodeId
from core.states import NodeState


class Leases:
    """The leases of one reign. Every method takes the monotonic instant `now`, in seconds."""

    def __init__(self, timers: Timers, now: float) -> None:
        self._timers = timers
        self._clock = AwakeClock(now, timers.max_step_s)
        self._leases: dict[NodeId, Lease] = {}
        self._terms = Terms(suspect_s=timers.suspect_s, lost_s=timers.lost_s)
        self._storage_seen_at = 0.0
        self.brake = Brake()

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._leases)

    def add(self, node_id: NodeId, *, has_left: bool) -> None:
        """Begin the lease of a node of a former reign; all of them are given the time to dial this controller."""
        self._leases[node_id] = machine.begun(has_left=has_left)
        self._terms = self._terms._replace(grace_s=self._timers.grace_s(len(self._leases)))

    def forget(self, node_id: NodeId) -> None:
        """Drop a node: it does not count any more."""
        if self._leases.pop(node_id, None) is not None:
            self.brake = brakes.noted(self.brake, node_id, is_lost=False, now=0.0)

    def happened(self, node_id: NodeId, event: Happened, now: float) -> tuple[Effect, ...]:
        """Take up what happened to one node and return what is to be done."""
        awake = self._clock.read(now)
        before = self._leases.get(node_id) or Lease()
        self._leases[node_id], effects = machine.step(before, event, awake, self._terms)
        for effect in effects:
            if isinstance(effect, Changed):
                self._changed(node_id, effect, awake)
        return effects

    def look(self, now: float) -> tuple[tuple[NodeId, Changed], ...]:
        """Let time pass for all; return which nodes are in another state now. At least every `Timers.tick_s`."""
        awake = self._clock.read(now)
        changes: list[tuple[NodeId, Changed]] = []
        event, terms, silent, here = Looked(), self._terms, 0, 0
        for node_id, lease in self._leases.items():
            if machine.is_fresh(lease, awake, terms):  # nearly all of them, each second
                here += 1
                continue
            after, effects = machine.step(lease, event, awake, terms)
            if after is not lease:
                self._leases[node_id] = after
            here += not after.has_left
            silent += after.state is NodeState.SUSPECT and after.heard_at is not None
            changes += [(node_id, effect) for effect in effects if isinstance(effect, Changed)]
        for node_id, change in changes:
            self._changed(node_id, change, awake)
        if self.brake.lost or self.brake.is_on:
            self.brake = brakes.looked(self.brake, nodes=here, silent=silent, now=awake)
        return tuple(changes)

    def _changed(self, node_id: NodeId, change: Changed, awake: float) -> None:
        if change.after is NodeState.LOST or change.before is NodeState.LOST:
            self.brake = brakes.noted(self.brake, node_id, is_lost=change.after is NodeState.LOST, now=awake)

    def storage_is(self, *, up: bool, now: float) -> None:
        """Note whether the database answers. Without it nothing becomes lost; after it all have a lease to come back.

        Nodes that were found lost since it last answered are lost no more: nobody could have written that down.
        """
        awake = self._clock.read(now)
        if up and self._terms.is_held:
            self._terms = self._terms._replace(is_held=False, counts_from=awake)
        elif not up and not self._terms.is_held:
            self._terms = self._terms._replace(is_held=True)
            for node_id, lease in self._leases.items():
                self._leases[node_id] = machine.spared(lease, self._storage_seen_at)
                if self._leases[node_id] is not lease:
                    self.brake = brakes.noted(self.brake, node_id, is_lost=False, now=awake)
        if up:
            self._storage_seen_at = awake

    def release_brake(self) -> None:
        """Do as an operator says: what is lost now is really lost."""
        self.brake = brakes.overridden(self.brake)

    def lease(self, node_id: NodeId) -> Lease:
        """Return one node's lease."""
        return self._leases[node_id]

    def state(self, node_id: NodeId) -> NodeState:
        """Return one node's state as of the last event or look."""
        return self._leases[node_id].state

    def awake_s(self, now: float) -> float:
        """Return the awake seconds of this reign, of which the instants in a `Lease` are."""
        return self._clock.read(now)

    def silent_s(self, node_id: NodeId, now: float) -> float:
        """Return the awake seconds since one node was heard of, or since this reign began."""
        return self._leases[node_id].silent_s(self._clock.read(now))

    def returned_s(self, node_id: NodeId, now: float) -> float | None:
        """Return the awake seconds since one node came back from being lost; None when it never was."""
        at = self._leases[node_id].returned_at
        return None if at is None else self._clock.read(now) - at

    def is_flapping(self, node_id: NodeId, now: float) -> bool:
        """Return whether one node has gone silent and come back too often of late."""
        return self._leases[node_id].is_flapping(self._clock.read(now))
