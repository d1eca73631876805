"""Who of a node's processes belongs to nobody, seen without asking the node.

Whatever an engine forks keeps its working directory and its output, new session and new name or not: both lie in the
node's data directory. Who has them, and is not below a shim that lives and is on record, is a stray.
"""

import os
from pathlib import Path

from core.infra import processes
from core.infra.processes import ProcessMark
from node_agent import shim_client


def kept(data_dir: Path) -> frozenset[ProcessMark]:
    """Return the shims on record that live, and all below them."""
    records = [shim_client.read_record(path.parent) for path in data_dir.glob("replicas/*/record.json")]
    shims = {record.status.shim for record in records if record is not None and record.status.shim is not None}
    roots = frozenset(shim.pid for shim in shims if processes.is_alive(shim))
    return frozenset(processes.family(roots))


def strays(data_dir: Path) -> list[ProcessMark]:
    """Return the living processes of `data_dir` that no living shim keeps."""
    inside = [mark for entry in os.listdir("/proc") if entry.isdigit() and (mark := _inside(int(entry), data_dir))]
    owned = kept(data_dir)  # looked at last: one that was born in between is owned, not stray
    return [mark for mark in inside if mark not in owned and processes.is_alive(mark)]


def _inside(pid: int, data_dir: Path) -> ProcessMark | None:
    mark = processes.mark(pid)
    if mark is None:
        return None
    for name in ("cwd", "fd/1", "fd/2"):
        try:
            if f"{os.readlink(f'/proc/{pid}/{name}')}/".startswith(f"{data_dir}/"):
                return mark
        except OSError:
            continue  # it ended, or is a stranger's
    return None
