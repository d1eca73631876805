"""When many nodes go silent at once, this controller blames itself: pure.

Comes in: which nodes are lost, how many are silent, and the awake seconds. Goes out: the next `Brake`: whose replicas
may be placed anew. Called by `controller.fleet.leases`. A lost node that is held keeps its replicas in the count of
what runs; everything else of being lost (no requests, no new replicas) holds all the same.

Source: `--unhealthy-zone-threshold` and `--node-eviction-rate` of Kubernetes' node lifecycle controller, and Nomad's
`disconnect` handling; a controller that lost its own network must not start the world anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from core.ids import NodeId

MASS_NODES = 3
MASS_SHARE = 0.3
MASS_WINDOW_S = 60.0
"""At least so many nodes and more than this share of all within so many seconds; or all of two or more."""
RELEASES_PER_S = 1.0
"""Lost nodes whose replicas are placed anew in a second; Kubernetes' default is a tenth."""


@dataclass(frozen=True, kw_only=True)
class Brake:
    """`lost` maps each lost node to the instant it became lost; of these `released` may be replaced.

    While it `is_on` none is released. `pardoned` nodes, lost when an operator released the brake, never put it on.
    """

    lost: Mapping[NodeId, float] = field(default_factory=dict)
    released: frozenset[NodeId] = frozenset()
    pardoned: frozenset[NodeId] = frozenset()
    is_on: bool = False
    since: float = 0.0
    next_release_at: float = 0.0

    @property
    def held(self) -> frozenset[NodeId]:
        """The lost nodes whose replicas are not placed anew now."""
        return frozenset(self.lost.keys() - self.released)


def noted(brake: Brake, node_id: NodeId, *, is_lost: bool, now: float) -> Brake:
    """Return the brake when `node_id` has become lost, or is lost no longer (heard of, gone on purpose, forgotten)."""
    if is_lost:
        return replace(brake, lost={**brake.lost, node_id: now})
    if node_id not in brake.lost:
        return brake
    return replace(
        brake,
        lost={known: at for known, at in brake.lost.items() if known != node_id},
        released=brake.released - {node_id},
        pardoned=brake.pardoned - {node_id},
    )


def looked(brake: Brake, *, nodes: int, silent: int, now: float) -> Brake:
    """Return the brake at `now`, with `silent` suspect ones among `nodes` that have not left on purpose.

    Suspect nodes count as soon as one is lost: those cut off together become lost over a whole heartbeat, and the first
    of them must not be replaced because it was the first.

    1. On, and what is lost, or on its way there, is no longer so much: off. 2. Off, and so many are going at once: on.
    3. Off: one more lost node is released when its turn has come. The same instant looked at twice is the same brake.
    """
    counted = {node_id: at for node_id, at in brake.lost.items() if node_id not in brake.pardoned}
    if brake.is_on:
        if counted and _is_mass(len(counted) + silent, nodes):
            return brake
        brake = replace(brake, is_on=False)
    else:
        recent = sum(1 for at in counted.values() if now - at <= MASS_WINDOW_S)
        if recent and (_is_mass(recent + silent, nodes) or len(counted) + silent >= nodes > 1):
            return replace(brake, is_on=True, since=now)
    waiting = sorted(brake.held, key=lambda node_id: (brake.lost[node_id], node_id))
    if not waiting or now < brake.next_release_at:
        return brake
    return replace(brake, released=brake.released | {waiting[0]}, next_release_at=now + 1.0 / RELEASES_PER_S)


def _is_mass(lost: int, nodes: int) -> bool:
    """Return whether so many are too many at once: 3 and more than 30 %, or all of two or more."""
    return (lost >= MASS_NODES and lost > MASS_SHARE * nodes) or lost >= nodes > 1


def overridden(brake: Brake) -> Brake:
    """Return the brake released by an operator, who says that what is lost is really lost."""
    return replace(brake, is_on=False, pardoned=frozenset(brake.lost))


def sentence(brake: Brake, nodes: int) -> str:
    """Return what the brake does and why, for people; empty while it is off."""
    if not brake.is_on:
        return ""
    return (
        f"{len(brake.lost)} of {nodes} nodes are lost at once, so none of their replicas is placed anew: the fault is "
        "more likely this controller's own network; it ends when they are back, or with `slice node unbrake`"
    )
