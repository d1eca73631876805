"""Three machines seen from outside, without asking them: which process does what, and which belongs to nobody.

A machine's processes are those in its network namespace. Whoever descends from its recorded supervisor, from a recorded
part or from a recorded shim belongs to the cluster, and whoever descends from this process is the test's; any other
process is an orphan.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cli.cluster import lock
from cli.cluster.parts import recorded
from core.infra import cluster, joined, processes
from core.infra.cluster import MachineBlock
from core.infra.processes import ProcessMark
from node_agent import shim_client
from tests.many.three import ONE, Three

_ROLES = (
    ("supervisor", re.compile(r"-m cli\.roots\.(joined_)?supervisor ")),
    ("controller", re.compile(r"-m cli\.roots\.controller ")),
    ("node agent", re.compile(r"-m cli\.roots\.node_agent ")),
    ("door host", re.compile(r"-m cli\.roots\.door ")),
    ("postmaster", re.compile(r"/bin/postgres -D ")),
    ("gcs", re.compile(r"/gcs_server ")),
    ("raylet", re.compile(r"/raylet/raylet ")),
    ("Serve controller", re.compile(r"^ray::ServeController")),
    ("Serve replica", re.compile(r"^ray::ServeReplica")),
    ("Serve proxy", re.compile(r"^ray::ProxyActor")),
    ("HAProxy manager", re.compile(r"^ray::HAProxyManager")),
    ("door HAProxy", re.compile(r"/haproxy .*-f /\S+/ray/")),
    ("plane HAProxy", re.compile(r"/haproxy .*-f haproxy\.cfg")),
    ("door shim", re.compile(r"/shim\.py \S+/door/shim/spec\.json")),
    ("plane shim", re.compile(r"/shim\.py \S+/plane/(?P<which>\w+)/spec\.json")),
    ("shim", re.compile(r"/shim\.py \S+/replicas/(?P<which>\w+)/spec\.json")),
    ("engine", re.compile(r"/fake/program/serve\.py \S+/replicas/(?P<which>\w+)/work/")),
    ("backend", re.compile(r"^postgres: slice slice ")),
)
MANY = frozenset({"backend", "child"})
"""Roles that a machine may have any number of."""


@dataclass(frozen=True, kw_only=True)
class Doing:
    """One process and what it does; `which` names the replica or the slot where a role has several."""

    mark: ProcessMark
    role: str
    which: str = ""


def block_of(three: Three, name: str) -> MachineBlock:
    """Return the recorded block of a machine."""
    data_dir = three.machines[name].data_dir
    found = cluster.load(data_dir) if name == ONE else joined.load(data_dir)
    assert found is not None
    return found


def doings(three: Three, name: str) -> list[Doing]:
    """Return the processes of a machine whose command line tells a role."""
    return [doing for pid in three.pids(name) if (doing := _doing(pid)) is not None]


def _doing(pid: int) -> Doing | None:
    mark, line = processes.mark(pid), _line(pid)
    if mark is None:
        return None
    for role, pattern in _ROLES:
        if (found := pattern.search(line)) is not None and processes.is_alive(mark):
            is_child = role == "engine" and _is_child(pid, line)
            return Doing(mark=mark, role="child" if is_child else role, which=found.groupdict().get("which") or "")
    return None


def _is_child(pid: int, line: str) -> bool:
    """Return whether an engine's process was forked by another one: it renames itself, a moment after its birth."""
    parent = ([*_read(pid, "stat").rpartition(")")[2].split(), "0", "0"])[1]  # field 4, proc_pid_stat(5)
    return _read(pid, "comm").startswith("worker:") or _line(int(parent)) == line


def _line(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ")


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def census(found: list[Doing]) -> Counter[tuple[str, str]]:
    """Return how many processes do what, roles of any number left out."""
    return Counter((doing.role, doing.which) for doing in found if doing.role not in MANY)


def doubles(found: list[Doing]) -> list[tuple[str, str]]:
    """Return the replicas that have more than one engine process."""
    engines = Counter(doing.which for doing in found if doing.role == "engine")
    return [("engine", which) for which, count in engines.items() if count > 1]


def _roots(block: MachineBlock) -> frozenset[int]:
    records = [
        shim_client.read_record(file.parent)
        for pattern in ("node/replicas/*/record.json", "node/plane/*/record.json", "door/shim/record.json")
        for file in block.data_dir.glob(pattern)
    ]
    shims = [record.status.shim for record in records if record is not None]
    parts = [recorded(block.parts_dir, file.stem) for file in block.parts_dir.glob("*.json") if "." not in file.stem]
    known = [lock.supervisor(block.data_dir), *parts, *shims]
    return frozenset(one.pid for one in known if one is not None and processes.is_alive(one))


def orphans(three: Three, name: str) -> list[str]:
    """Return the living processes of a machine that belong to nobody."""
    there = [mark for pid in three.pids(name) if (mark := processes.mark(pid)) is not None]
    # Looked at last: one that was born in between has a parent of ours, and is no orphan.
    owned = set(processes.family(_roots(block_of(three, name)) | {os.getpid()}))
    return [_told(mark) for mark in there if mark not in owned and processes.is_alive(mark)]


def _told(mark: ProcessMark) -> str:
    return f"{mark.pid} {_line(mark.pid).strip()[:160]}"
