"""A large simulated cluster: 1,000 nodes, 5,000 replicas, an hour with faults, decided as in production."""

import gc
import resource
import time

from bench.report import Section
from core.units import text_from_bytes
from tests.scenarios.cluster import GIB, Shape
from tests.scenarios.run import run

LARGE = Shape(
    nodes=1000,
    deployments=500,
    replicas_each=10,
    faulty_s=3300.0,
    quiet_s=300.0,
    heartbeat_s=2.0,
    pass_every_s=5.0,
    observed_every_s=60.0,
    delay_s=0.02,
    loss=0.001,
    duplication=0.01,
    faults_per_s=0.2,
    asks_per_s=50.0,
    promise_bytes=8 * GIB,
    device_bytes=64 * GIB,
)


def measured(seed: int = 1, shape: Shape = LARGE) -> list[Section]:
    """Run one hour of `shape` and return what it took; any violation ends it.

    Raises:
        tests.scenarios.world.Violation: an invariant does not hold.
    """
    gc.disable()  # a run makes no cycles worth a look at a million objects
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        report = run(seed, shape=shape)
    finally:
        gc.enable()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    hour_s = shape.faulty_s + shape.quiet_s
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(report.faults.items()))
    rows = (
        ("nodes, replicas wanted", f"{shape.nodes}, {shape.deployments * shape.replicas_each}"),
        ("simulated time", f"{hour_s:.0f} s, the last {shape.quiet_s:.0f} s without faults"),
        ("wall time (target: at most 60 s)", f"{wall:.1f} s"),
        ("processor time of its one thread", f"{cpu:.1f} s"),
        ("events, events per processor second", f"{report.events}, {report.events / cpu:.0f}"),
        ("passes of the reconcile loop", str(report.passes)),
        (
            "requests sent, answered, refused as stale",
            f"{report.asked}, {report.answered}, {report.refused}",
        ),
        ("violations of an invariant", "0"),
        ("peak resident memory", text_from_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)),
        (f"faults: {sum(report.faults.values())}", faults),
    )
    return [
        Section(
            title="Simulated cluster",
            method=f"`python -m bench scenario`, seed {seed}; one process, one thread, no network, no database: the "
            "leases, planner, life's steps, mirror and node agent's replica machine are those of the product",
            header=("figure", "value"),
            rows=rows,
        )
    ]
