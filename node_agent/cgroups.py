"""Control groups: one for each shim's tree, in whichever hierarchy of this machine we may write.

Comes in: our own place in the hierarchies, from /proc. Goes out: a `Group` that holds a tree from before its first
instruction, and what the kernel counted of memory that ran out. Loaded by path by `node_agent.shim`, imported by
`node_agent.shim_client` for what a dead shim left; standard library only. Must not touch a group that it did not make,
and must not be needed: without one, ancestry alone finds the tree.
"""

import contextlib
import os
import signal

KINDS = ("v2", "freezer", "memory")
"""In this order they are tried: v2 kills in one step, a freezer holds forks off, a v1 memory group only lists."""
_PREFIX = "slice."


def places(proc: str = "/proc/self") -> dict[str, str]:
    """Return the directory of our own group by kind; kinds that are not mounted here are absent."""
    try:
        with open(f"{proc}/cgroup") as stream:
            own = {_kind_of(controllers): path for _, controllers, path in _fields(stream.read())}
        with open(f"{proc}/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
            mounts = stream.read().splitlines()
    except (OSError, ValueError):
        return {}
    found: dict[str, str] = {}
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        kind = "v2" if kinds[0] == "cgroup2" else _kind_of(kinds[2])
        root, path = fields[3].rstrip("/"), own.get(kind, "")
        # A container may be shown a part of the hierarchy only, and its own path not within it.
        if kind in KINDS and (path == root or path.startswith(f"{root}/")):
            found.setdefault(kind, (fields[4] + path[len(root) :]).rstrip("/"))
    return found


def _fields(text: str) -> list[list[str]]:
    return [fields for line in text.splitlines() if len(fields := line.split(":", 2)) == 3]


def _kind_of(controllers: str) -> str:
    if not controllers:
        return "v2"
    return next((kind for kind in ("freezer", "memory") if kind in controllers.split(",")), controllers)


def _write(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w") as stream:
        stream.write(text)


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name)) as stream:
            return stream.read()
    except OSError:
        return ""


class Group:
    """One control group of ours. It may be gone at any time: whatever is asked of it then has been done."""

    def __init__(self, kind: str, folder: str) -> None:
        self.kind = kind
        self.folder = folder

    def pids(self) -> list[int]:
        """Return who is in it, groups below included; zombies may be among them."""
        listed = "".join(_read(folder, "cgroup.procs") for folder, _, _ in os.walk(self.folder))
        return [int(word) for word in listed.split() if word.isdigit() and word != "0"]

    def kill(self) -> None:
        """SIGKILL all who are in it now."""
        if self.kind == "v2" and os.path.exists(os.path.join(self.folder, "cgroup.kill")):
            with contextlib.suppress(OSError):
                _write(self.folder, "cgroup.kill", "1")
                return
        self._freeze("FROZEN")
        try:
            self._kill_each()
        finally:
            self._freeze("THAWED")  # a frozen process dies when it is thawed

    def _freeze(self, state: str) -> None:
        if self.kind == "freezer":
            with contextlib.suppress(OSError):
                _write(self.folder, "freezer.state", state)

    def _kill_each(self) -> None:
        handles: dict[int, int] = {}
        try:
            for pid in self.pids():
                with contextlib.suppress(OSError):
                    handles[pid] = os.pidfd_open(pid)
            # Looked at once more: a number whose process is still listed was not given to a stranger in between.
            for pid in self.pids():
                if pid in handles:
                    with contextlib.suppress(OSError):
                        signal.pidfd_send_signal(handles[pid], signal.SIGKILL)
        finally:
            for handle in handles.values():
                os.close(handle)

    def remove(self) -> bool:
        """Remove it with the groups below; return whether it is gone."""
        for folder, _, _ in os.walk(self.folder, topdown=False):
            with contextlib.suppress(OSError):  # somebody is in it still
                os.rmdir(folder)
        return not os.path.isdir(self.folder)


def known(kind: object, folder: object) -> Group | None:
    """Return the group that a record names, or None for anything that is no name of ours."""
    if not isinstance(folder, str) or kind not in KINDS or not os.path.basename(folder).startswith(_PREFIX):
        return None
    return Group(str(kind), folder)


def enter(pid: int, name: str, within: dict[str, str]) -> Group | None:
    """Make a new group below our own of `within` and put `pid` into it; return None where no hierarchy lets us."""
    for kind in KINDS:
        if kind not in within:
            continue
        folder = os.path.join(within[kind], f"{_PREFIX}{name}")
        try:
            os.mkdir(folder, 0o755)
        except OSError:
            continue  # not ours to write; or there is one of this name, which is somebody else's then
        try:
            _write(folder, "cgroup.procs", str(pid))
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
            continue
        if os.path.exists(os.path.join(folder, "memory.oom.group")):
            with contextlib.suppress(OSError):
                _write(folder, "memory.oom.group", "1")  # half an engine is no engine
        return Group(kind, folder)
    return None


# -- memory that ran out -----------------------------------------------------------------------------------------------


class Counts:
    """What the kernel counted: `kills` for want of memory, and per limit above the tree how often it was `hit`.

    `is_own` when `kills` counts this tree alone.
    """

    def __init__(self, kills: int, hits: tuple[int, ...], *, is_own: bool) -> None:
        self.kills = kills
        self.hits = hits
        self.is_own = is_own


def counts(group: Group | None, within: dict[str, str], vmstat: str = "/proc/vmstat") -> Counts:
    """Return what is counted now, from the narrowest counter that covers the tree.

    1. v2: `memory.events` of the tree's group or the nearest above it; `oom` of `memory.events.local` is a limit hit.
    2. v1: `oom_kill` of `memory.oom_control`; `memory.failcnt` is a limit hit.
    3. No memory controller: `oom_kill` of /proc/vmstat, which counts the whole machine.

    Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the kernel.
    """
    own = group.folder if group is not None else ""
    v2 = _chain(own if group is not None and group.kind == "v2" else within.get("v2", ""), "memory.events")
    if v2:
        hits = tuple(_value(_read(one, "memory.events.local") or _read(one, "memory.events"), "oom") for one in v2)
        return Counts(_value(_read(v2[0], "memory.events"), "oom_kill"), hits, is_own=v2[0] == own)
    v1 = _chain(own if group is not None and group.kind == "memory" else within.get("memory", ""), "memory.oom_control")
    if v1:
        hits = tuple(int(_read(one, "memory.failcnt").strip() or 0) for one in v1)
        return Counts(_value(_read(v1[0], "memory.oom_control"), "oom_kill"), hits, is_own=v1[0] == own)
    return Counts(_value(_read("/", vmstat), "oom_kill"), (), is_own=False)


def _chain(folder: str, name: str) -> list[str]:
    """Return `folder` and those above it that hold a file `name`, nearest first."""
    found = []
    while folder.strip("/"):
        if os.path.exists(os.path.join(folder, name)):
            found.append(folder)
        folder = os.path.dirname(folder)
    return found


def _value(text: str, name: str) -> int:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return 0


def out_of_memory(before: Counts, after: Counts, *, was_killed: bool) -> str:
    """Return what ran out of memory between two looks: "cgroup" for a limit, "host" for the machine, "" for neither.

    A counter that others share says something only of a tree whose leader `was_killed` by SIGKILL.
    """
    if after.kills <= before.kills or not (after.is_own or was_killed):
        return ""
    is_limit = any(now > then for now, then in zip(after.hits, before.hits, strict=False))
    return "cgroup" if is_limit else "host"
