"""Processes as facts: a pid together with its start time, so that a reused pid is never taken for ours."""

import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_OUR_OWN_WANT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""These say nothing about the other process: nobody may be thought dead for want of file handles or memory."""


@dataclass(frozen=True, kw_only=True)
class ProcessMark:
    """One process for sure: `start_ticks` is field 22 of /proc/PID/stat (clock ticks since boot, proc(5))."""

    pid: int
    start_ticks: int


def _stat_fields(pid: int) -> list[str] | None:
    try:
        # Latin-1: a process may name itself with any bytes at all.
        text = Path(f"/proc/{pid}/stat").read_text("latin-1")
    except OSError as error:
        if error.errno in _OUR_OWN_WANT:
            raise
        return None  # it is gone, or mounted with hidepid (proc(5)) and a stranger's: ours are always readable
    # The second field is the name in parentheses and may hold spaces and parentheses itself.
    return text[text.rindex(")") + 2 :].split()


def mark(pid: int) -> ProcessMark | None:
    """Return the mark of the living process `pid`, or None when there is none (a zombie counts as none).

    Raises:
        OSError: we have no file handles or no memory left to look.
    """
    fields = _stat_fields(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return ProcessMark(pid=pid, start_ticks=int(fields[19]))


def is_alive(process: ProcessMark) -> bool:
    """Return whether this very process still lives."""
    return mark(process.pid) == process


def put_first(pid: int, nice: int) -> bool:
    """Let the processor, where it is scarce, go to the process `pid` and its session first; return whether we may.

    `nice` is -20 (first) to -1. Where the kernel schedules whole sessions (autogroups, sched(7)) the session's own
    value counts, and the process's beside it anywhere else; what the process starts in its session inherits both.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, pid, nice)
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))
    except FileNotFoundError:  # a kernel without autogroups
        return True
    except OSError:
        return False
    return True


def send_signal(process: ProcessMark, number: signal.Signals) -> bool:
    """Send a signal to this very process; return False when it is gone."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def family(roots: frozenset[int], sessions: frozenset[int] = frozenset()) -> list[ProcessMark]:
    """Return every living process that descends from `roots` (themselves included) or sits in one of `sessions`."""
    parents: dict[int, int] = {}
    marks: dict[int, ProcessMark] = {}
    chosen: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        fields = _stat_fields(int(entry))
        if fields is None or fields[0] in "ZX":
            continue
        pid = int(entry)
        parents[pid] = int(fields[1])
        marks[pid] = ProcessMark(pid=pid, start_ticks=int(fields[19]))
        if pid in roots or int(fields[3]) in sessions:
            chosen.add(pid)
    grew = True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in chosen and pid not in chosen}
        chosen |= more
        grew = bool(more)
    return [marks[pid] for pid in sorted(chosen)]
