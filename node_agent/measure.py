"""What a process tree weighs, read from /proc.

Comes in: the mark of a shim. Goes out: the members of its tree and their memory in bytes. Called by
`node_agent.runner` in a thread; it blocks for some milliseconds per process.
"""

import os

from core.infra import processes
from core.infra.processes import ProcessMark


def tree_below(shim: ProcessMark) -> list[ProcessMark]:
    """Return the living processes that a shim owns: all below it, as it is their subreaper."""
    if not processes.is_alive(shim):
        return []
    return [member for member in processes.family(frozenset({shim.pid})) if member != shim]


def pss_bytes(members: list[ProcessMark]) -> int:
    """Return the sum of the members' proportional set sizes: shared pages count once, mapped weights included.

    Source: /proc/PID/smaps_rollup, proc(5).
    """
    return sum(_pss_of(member.pid) for member in members)


def _pss_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as stream:
            for line in stream:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # it ended, or belongs to somebody else now
    return 0


def is_listener_ours(port: int, members: list[ProcessMark]) -> bool:
    """Return whether the socket that listens on IPv4 `port` belongs to one of `members`, so that no stranger who took
    the port is taken for the engine. True when the system does not let us know.
    """
    inodes = _listening_inodes(port)
    if not inodes:
        return True  # it closed meanwhile, or listens on IPv6: the next probe tells
    for member in members:
        try:
            folder = f"/proc/{member.pid}/fd"
            if any(os.readlink(f"{folder}/{name}") in inodes for name in os.listdir(folder)):
                return True
        except PermissionError:
            return True
        except OSError:
            continue
    return False


def _listening_inodes(port: int) -> frozenset[str]:
    """Return `socket:[inode]` of every IPv4 listener on `port`; state 0A is TCP_LISTEN (proc_net_tcp, kernel docs)."""
    found = set()
    try:
        with open("/proc/net/tcp") as stream:
            next(stream)
            for line in stream:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    except (OSError, StopIteration):
        return frozenset()
    return frozenset(found)
