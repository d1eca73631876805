"""Killing what is left of a process tree of ours, by marks alone.

Comes in: marks that were noted on disk by an earlier life of ours, in this boot. Goes out: a tree without a living
process. Called by `node_agent.shim_client` and `node_agent.subprocesses`. Must not touch a process that neither is
noted, nor descends from a noted one, nor sits in the session of a noted leader.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from core.errors import Failure
from core.infra import processes
from core.infra.processes import ProcessMark

_DEADLINE_S = 15.0
_PAUSE_S = 0.05


def boot_id() -> str:
    """Return the kernel's id of this boot, or "" where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def left_of(named: Iterable[ProcessMark], leader: ProcessMark | None) -> set[ProcessMark]:
    """Return what lives of the tree: those `named` and below them, and the session that `leader` led, gone or not."""
    marks = {*named, *(() if leader is None else (leader,))}
    roots = frozenset(mark.pid for mark in marks if processes.is_alive(mark))
    # The leader's number cannot be given away while a process of its session lives; if somebody else has it now,
    # then nothing is left of that session, and a session of that number is a stranger's.
    is_reused = leader is not None and processes.mark(leader.pid) not in (None, leader)
    sessions = frozenset({leader.pid}) if leader is not None and not is_reused else frozenset()
    oldest = min((mark.start_ticks for mark in marks), default=0)
    return {mark for mark in processes.family(roots, sessions) if mark.start_ticks >= oldest}


async def kill_all(name: str, left: Callable[[frozenset[ProcessMark]], set[ProcessMark]]) -> int:
    """SIGKILL what `left` finds, given all that was found so far, until it finds nothing; return how many there were.

    Raises:
        Failure: `shim.lost` when processes survive 15 s of it.
    """
    killed: set[ProcessMark] = set()
    pause = asyncio.Event()  # never set: waiting on it with a timeout is a timer
    try:
        async with asyncio.timeout(_DEADLINE_S):
            # A fork between look and kill is met in the next round.
            while rest := await asyncio.to_thread(_killed, left, frozenset(killed)):
                killed |= rest
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(pause.wait(), _PAUSE_S)
    except TimeoutError as error:
        raise Failure(
            "shim.lost",
            f"processes of {name} survive SIGKILL",
            hint="look for processes in state D; a driver or disk hangs",
        ) from error
    return len(killed)


def _killed(
    left: Callable[[frozenset[ProcessMark]], set[ProcessMark]], known: frozenset[ProcessMark]
) -> set[ProcessMark]:
    rest = left(known)
    for mark in rest:
        processes.send_signal(mark, signal.SIGKILL)
    return rest
