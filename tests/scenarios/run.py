"""Runs one seed: a rough time, then a quiet one, with every invariant looked at after each event.

`python -m tests.scenarios.run SEED [FENCE]` tells the story of one seed, e.g. one of `seeds.txt`.
"""

import sys
from dataclasses import dataclass, field, replace

from tests.scenarios.cluster import Cluster, Shape
from tests.scenarios.faults import Faults
from tests.scenarios.world import Fences, Violation, World

SMALL = Shape()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run was: events, passes of the loop, what the door asked, faults by kind."""

    events: int
    passes: int
    asked: int
    answered: int
    refused: int
    faults: dict[str, int] = field(default_factory=dict)


def shape_of(seed: int) -> Shape:
    """Return a small cluster for a seed: its size, its network and its haste differ from seed to seed."""
    chance = World(seed * 7919 + 1, Fences()).chance
    return replace(
        SMALL,
        nodes=chance.randint(2, 6),
        deployments=chance.randint(1, 4),
        replicas_each=chance.randint(1, 3),
        delay_s=chance.choice((0.001, 0.02, 0.3, 1.5)),
        loss=chance.choice((0.0, 0.0, 0.01, 0.05)),
        faults_per_s=chance.choice((0.1, 0.3, 0.6)),
    )


def run(seed: int, *, shape: Shape | None = None, fences: Fences = Fences()) -> Report:  # noqa: B008 - frozen
    """Run `seed` to its end.

    Raises:
        Violation: an invariant does not hold.
    """
    shape = shape or shape_of(seed)
    cluster = Cluster(seed, shape, fences)
    faults = Faults(cluster)
    world, network = cluster.world, cluster.network
    faults.start(shape.faulty_s)
    world.run_until(shape.faulty_s, cluster.check)
    network.loss = network.duplication = 0.0
    network.heal(set(network.cut))
    cluster.database.is_up = True
    world.say("all is healed")
    world.run_until(shape.faulty_s + shape.quiet_s, cluster.check)
    cluster.settled()
    door = cluster.door
    return Report(
        events=world.events,
        passes=cluster.passes,
        asked=door.asked,
        answered=door.answered,
        refused=door.refused,
        faults=faults.count,
    )


if __name__ == "__main__":
    off = {name: False for name in sys.argv[2:]}
    try:
        print(run(int(sys.argv[1]), fences=Fences(**off)))
    except Violation as violation:
        print(violation)
        sys.exit(1)
