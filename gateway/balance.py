"""Which replica gets a request: the less busy of two drawn at random, skipping those that just refused.

Comes in: a route's targets. Goes out: one of them, counted as busy until released. Called by the relay and read by the
watch. One instance per door, used from the event loop only; it must not await, so that choosing and counting are one
step and no drained replica can gain a request after its zero was reported.

Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (2001).
"""

from collections import Counter
from collections.abc import Callable, Sequence

from core.clock import Clock
from core.ids import ReplicaId
from gateway.chance import Chance
from gateway.table import Spawn, Target

SKIP_S = 1.0
"""How long a target that refused a connection is passed over, seconds."""


class Balance:
    """In-flight counts by replica, refusals, and unmet demand; `on_idle` hears when a replica has nothing left."""

    def __init__(self, chance: Chance, clock: Clock, on_idle: Callable[[ReplicaId], None] = lambda _: None) -> None:
        self._chance = chance
        self._clock = clock
        self._on_idle = on_idle
        self._in_flight: Counter[ReplicaId] = Counter()
        self._skipped_until: dict[ReplicaId, float] = {}
        self._demand: Counter[str] = Counter()

    def take(self, targets: Sequence[Target], tried: frozenset[Spawn] = frozenset()) -> Target | None:
        """Return a target and count it busy, or None when all were `tried`; refusers are used when nobody else is."""
        now = self._clock.monotonic()
        fresh = [target for target in targets if target.spawn not in tried]
        willing = [target for target in fresh if self._skipped_until.get(target.replica_id, 0.0) <= now] or fresh
        if not willing:
            return None
        pair = willing if len(willing) <= 2 else self._chance.sample(willing, 2)
        if len(pair) == 2 and self._chance.random() < 0.5:
            pair = [pair[1], pair[0]]  # equal counts must not always favour the first
        chosen = min(pair, key=lambda target: self._in_flight[target.replica_id])
        self._in_flight[chosen.replica_id] += 1
        return chosen

    def release(self, target: Target) -> None:
        """Count one request of `target` as ended."""
        left = self._in_flight[target.replica_id] - 1
        if left > 0:
            self._in_flight[target.replica_id] = left
        else:
            del self._in_flight[target.replica_id]
            self._on_idle(target.replica_id)

    def refused(self, target: Target) -> None:
        """Pass over `target` for `SKIP_S`."""
        now = self._clock.monotonic()
        self._skipped_until = {key: until for key, until in self._skipped_until.items() if until > now}
        self._skipped_until[target.replica_id] = now + SKIP_S

    def unmet(self, public_name: str) -> None:
        """Count a request that found no replica of `public_name`."""
        self._demand[public_name] += 1

    def in_flight(self) -> dict[ReplicaId, int]:
        """Return the replicas that are busy now, with their number of requests."""
        return dict(self._in_flight)

    def drain_demand(self) -> dict[str, int]:
        """Return the unmet requests since the last call, and forget them."""
        demand = dict(self._demand)
        self._demand.clear()
        return demand
