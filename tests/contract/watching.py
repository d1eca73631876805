"""Seeing an engine stop to work: when its processes burn no more CPU, or when it says itself that nothing runs.

In: a replica. Out: seconds. Called by the test of cancellation.
"""

import os
import threading
import time
from collections.abc import Callable

from core.infra.processes import ProcessMark

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LOOK_S = 0.01
_QUIET_S = 0.25
_QUIET_SHARE = 0.1
"""Of one core: a health probe or a housekeeping thread stays far below, an engine at work far above."""


def cpu_s(members: list[ProcessMark]) -> float:
    """Return the CPU seconds that the processes have used; utime and stime of /proc/PID/stat (proc(5))."""
    ticks = 0
    for member in members:
        try:
            with open(f"/proc/{member.pid}/stat", "rb") as stream:
                fields = stream.read().rpartition(b")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks * TICK_S


def idle_after_s(members: list[ProcessMark], limit_s: float) -> float:
    """Return how long from now the processes go on working: until the last quarter second in which they rest.

    Raises:
        AssertionError: they work on after `limit_s`.
    """
    pause = threading.Event()
    began = time.monotonic()
    samples = [(began, cpu_s(members))]
    while True:
        pause.wait(_LOOK_S)
        now = time.monotonic()
        samples.append((now, cpu_s(members)))
        while len(samples) > 1 and samples[1][0] <= now - _QUIET_S:
            samples.pop(0)
        (first_at, first), (_, last) = samples[0], samples[-1]
        # A tick at the window's edge may belong to work before it.
        if now - began >= _QUIET_S and last - first <= max(TICK_S, _QUIET_SHARE * (now - first_at)):
            return max(0.0, first_at - began)
        assert now - began < limit_s, f"it still works {limit_s} s later"


def until_low_s(gauge: Callable[[], float | None], low: float, limit_s: float) -> float:
    """Return how long from now it takes until `gauge` reads `low` or less.

    Raises:
        AssertionError: it does not within `limit_s`.
    """
    began = time.monotonic()
    while (gauge() or 0) > low:
        assert time.monotonic() - began < limit_s, f"it still says more than {low} {limit_s} s later"
    return time.monotonic() - began
