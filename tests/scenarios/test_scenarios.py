"""Simulated clusters with faults: many small seeds, the seeds that failed once, and what each fence is good for.

`SLICE_SCENARIO_SEEDS` says how many small seeds are run (500); one that fails goes into `seeds.txt`.
"""

import os
from pathlib import Path

import pytest

from controller.reconcile.picture import Views, seen
from tests.scenarios.cluster import Cluster
from tests.scenarios.faults import Faults
from tests.scenarios.run import run, shape_of
from tests.scenarios.world import Fences, Violation

SEEDS = int(os.environ.get("SLICE_SCENARIO_SEEDS", "500"))
BATCH = 50


def kept() -> list[tuple[int, str]]:
    lines = Path(__file__).with_name("seeds.txt").read_text().splitlines()
    words = [line.split("#")[0].split() for line in lines]
    return [(int(seed), fence) for seed, fence in (pair for pair in words if pair)]


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_invariant_breaks_whatever_happens(first: int) -> None:
    broken = {}
    for seed in range(first, min(first + BATCH, SEEDS)):
        try:
            run(seed)
        except Violation as violation:
            broken[seed] = str(violation).splitlines()[0]
    assert not broken, f"put these into seeds.txt, and look with `python -m tests.scenarios.run SEED`: {broken}"


@pytest.mark.parametrize(("seed", "fence"), kept(), ids=lambda value: str(value))
def test_a_seed_that_failed_once_passes(seed: int, fence: str) -> None:
    run(seed)


@pytest.mark.parametrize(
    ("fence", "invariant"),
    [
        ("leader_epoch", "no write by a stale leader"),
        ("session_epoch", "what is known never goes back"),
        ("generation", "no kill without an order"),
        ("incarnation", "at most one routable incarnation"),
    ],
)
def test_without_a_fence_a_kept_seed_fails(fence: str, invariant: str) -> None:
    seeds = [seed for seed, off in kept() if off == fence]
    assert seeds, f"seeds.txt has none for {fence}"
    for seed in seeds:
        with pytest.raises(Violation, match=invariant):
            run(seed, fences=Fences(**{fence: False}))


def test_the_same_seed_is_the_same_run() -> None:
    assert run(11) == run(11)


def test_views_that_are_remembered_are_those_that_would_be_made_anew() -> None:
    cluster = Cluster(5, shape_of(5), Fences())
    Faults(cluster).start(100.0)
    views, compared = Views(), 0
    for second in range(1, 100):
        cluster.world.run_until(float(second))
        leading = cluster.leading()
        if leading is not None:
            picture, live, now = leading.loop.picture(), leading.loop.live(), leading.wall()
            remembered = views.seen(picture, live, now=now, cpu_reserve_bytes=0)
            assert remembered == seen(picture, live, now=now, cpu_reserve_bytes=0)
            compared += bool(remembered.replicas)
    assert compared > 50


def test_a_run_does_what_it_is_for() -> None:
    """The seeds would prove nothing if nothing went wrong in them, or if nothing ever ran."""
    reports = [run(seed) for seed in range(12)]
    assert {kind for report in reports for kind in report.faults} >= {
        "crash_engine",
        "kill_agent",
        "reboot",
        "cut",
        "cut_one_way",
        "kill_controller",
        "suspend_controller",
        "suspend_node",
        "stop_database",
    }
    assert sum(report.answered for report in reports) > sum(report.asked for report in reports) / 2
    assert sum(report.refused for report in reports) > 0
    assert len({shape_of(seed) for seed in range(12)}) > 6
