"""Starting, finding and talking to shims from asyncio.

Comes in: a `ShimSpec`, or the socket and record of a shim that lives already. Goes out: a `ShimHandle`. Called by the
node agent for engines and by the cluster's supervisor for Ray. Must not signal a process that no record names.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from core.errors import Failure
from core.infra import cluster, processes
from core.infra.processes import ProcessMark
from node_agent import cgroups, killing
from node_agent.cgroups import Group
from node_agent.killing import boot_id as boot_id

SHIM_PROGRAM = Path(__file__).with_name("shim.py")
_START_DEADLINE_S = 20.0
_ANSWER_DEADLINE_S = 10.0
_KILL_DEADLINE_S = 30.0  # beyond the grace: processes in uninterruptible sleep take their time
_TROUBLE_PAUSE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class ShimSpec:
    """One process tree to be; `env` is the whole environment, `argv[0]` an absolute path.

    Its log is cut at `log_max_bytes`, and `log_kept` earlier pieces of that size are kept beside it.
    """

    shim_id: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    log_path: Path
    record_dir: Path
    socket_path: Path
    incarnation: int = 1
    stop_grace_s: float = 10.0
    log_max_bytes: int = 16 * 1024**2
    log_kept: int = 3


@dataclass(frozen=True, kw_only=True)
class ShimStatus:
    """What a shim says: `state` is spawning, running, exited (by itself) or stopped (on our word).

    `is_tree_gone` is true when no process of the tree is left; only then may the shim be released. `out_of_memory` says
    for whose want of memory the kernel killed in the tree: `cgroup` (a limit), `host`, or "".
    """

    state: str
    incarnation: int
    leader: ProcessMark | None
    shim: ProcessMark | None
    exit_code: int | None
    exit_signal: int | None
    spawn_error: str | None
    is_tree_gone: bool
    out_of_memory: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the leader has exited."""
        return self.state in ("exited", "stopped")


@dataclass(frozen=True, kw_only=True)
class ShimRecord:
    """`record.json` of one shim, as last written; `boot_id` tells whether its pids mean anything now.

    `group` is the control group that the tree was put into, if any; `log_path` is where its output goes.
    """

    shim_id: str
    boot_id: str
    socket_path: Path
    status: ShimStatus
    log_path: Path
    group: Group | None = None


def _mark_of(value: Any) -> ProcessMark | None:
    if not isinstance(value, dict):
        return None
    return ProcessMark(pid=int(value["pid"]), start_ticks=int(value["start_ticks"]))


def _group_of(value: Any) -> Group | None:
    return cgroups.known(value.get("kind"), value.get("folder")) if isinstance(value, dict) else None


def _status_of(values: Mapping[str, Any]) -> ShimStatus:
    return ShimStatus(
        state=str(values["state"]),
        incarnation=int(values["incarnation"]),
        leader=_mark_of(values["leader"]),
        shim=_mark_of(values["shim"]),
        exit_code=values["exit_code"],
        exit_signal=values["exit_signal"],
        spawn_error=values["spawn_error"],
        is_tree_gone=bool(values["tree_gone"]),
        out_of_memory=str(values.get("out_of_memory", "")),  # absent where a shim of an earlier release runs on
    )


def read_record(record_dir: Path) -> ShimRecord | None:
    """Return the record in `record_dir`, or None when there is none that can be read."""
    try:
        values = json.loads((record_dir / "record.json").read_text())
        return ShimRecord(
            shim_id=str(values["shim_id"]),
            boot_id=str(values["boot_id"]),
            socket_path=Path(values["intent"]["socket_path"]),
            status=_status_of(values),
            log_path=Path(values["intent"]["log_path"]),
            group=_group_of(values.get("cgroup")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lost(path: Path) -> Failure:
    return Failure(
        "shim.lost",
        f"the shim behind {path.name} ended without an answer",
        hint="what is left of its process tree is swept; see shim.log beside its record",
    )


class ShimHandle:
    """One living shim, reached through its socket; each call is a connection of its own."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    async def status(self) -> ShimStatus:
        """Return the shim's status.

        Raises:
            Failure: `shim.lost` when the shim is gone or does not answer within 10 s.
        """
        return await self._ask({"op": "status"}, _ANSWER_DEADLINE_S)

    async def wait_exit(self) -> ShimStatus:
        """Return the status when the leader has exited; waits for as long as it lives.

        Raises:
            Failure: `shim.lost` when the shim itself dies.
        """
        return await self._ask({"op": "wait"}, None)

    async def stop(self, grace_s: float) -> ShimStatus:
        """SIGTERM, `grace_s` seconds, SIGKILL to the whole tree; return when the tree is gone.

        Raises:
            Failure: `shim.lost` when the shim dies, or when the tree survives 30 s of SIGKILL.
        """
        return await self._ask({"op": "stop", "grace_s": grace_s}, grace_s + _KILL_DEADLINE_S)

    async def release(self) -> None:
        """Let the shim end; its socket vanishes, its record and log stay.

        Raises:
            Failure: `shim.lost` when it is gone already, or refuses because its tree still lives.
        """
        await self._ask({"op": "release"}, _ANSWER_DEADLINE_S)

    async def _ask(self, request: dict[str, object], deadline_s: float | None) -> ShimStatus:
        try:
            async with asyncio.timeout(deadline_s):
                line = await self._exchange(request)
            answer = json.loads(line)
        except (OSError, TimeoutError, ValueError) as error:
            raise _lost(self.socket_path) from error
        if not answer.get("ok"):
            raise Failure(
                "shim.lost", f"the shim behind {self.socket_path.name} refused {request['op']}: {answer.get('error')}"
            )
        return _status_of(answer)

    async def _exchange(self, request: dict[str, object]) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self.socket_path))
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            await writer.drain()
            return await reader.readline()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def start(spec: ShimSpec, python: str) -> ShimHandle:
    """Start a shim with the interpreter `python` and return its handle; the engine is spawned by then or about to be.

    Raises:
        Failure: `shim.start_failed` when it could not detach, bind its socket or write its record.
    """
    spec_file = await asyncio.to_thread(_write_spec, spec)
    process = await asyncio.create_subprocess_exec(
        python,
        "-I",
        "-S",
        str(SHIM_PROGRAM),
        str(spec_file),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={},
    )
    try:
        async with asyncio.timeout(_START_DEADLINE_S):
            _, said = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        said = b"it did not detach in time"
    finally:
        await asyncio.to_thread(spec_file.unlink, missing_ok=True)  # it held the engine's secret
    if process.returncode != 0:
        raise Failure(
            "shim.start_failed",
            f"the shim of {spec.shim_id} could not start: {said.decode(errors='replace').strip()[-300:]}",
            hint="check free space and the mode of the data directory",
        )
    return ShimHandle(spec.socket_path)


def _write_spec(spec: ShimSpec) -> Path:
    if len(str(spec.socket_path).encode()) > 107:
        raise Failure(
            "cluster.path_too_long",
            f"the socket path {spec.socket_path} is longer than 107 bytes",
            hint="set SLICE_RUNTIME_DIR to a shorter directory",
        )
    cluster.make_private_dir(spec.record_dir)
    cluster.make_private_dir(spec.socket_path.parent)
    values = {
        "shim_id": spec.shim_id,
        "argv": list(spec.argv),
        "env": dict(spec.env),
        "cwd": str(spec.cwd),
        "log_path": str(spec.log_path),
        "record_dir": str(spec.record_dir),
        "socket_path": str(spec.socket_path),
        "incarnation": spec.incarnation,
        "stop_grace_s": spec.stop_grace_s,
        "log_max_bytes": spec.log_max_bytes,
        "log_kept": spec.log_kept,
    }
    file = spec.record_dir / "spec.json"
    cluster.write_private(file, json.dumps(values))
    return file


async def attach(socket_path: Path) -> ShimHandle | None:
    """Return the handle of the shim that listens on `socket_path`, or None when nobody does.

    Raises:
        Failure: `shim.lost` when somebody listens but does not answer within 10 s.
    """
    handle = ShimHandle(socket_path)
    try:
        await handle.status()
    except Failure as failure:
        if isinstance(failure.__cause__, FileNotFoundError | ConnectionRefusedError):
            return None
        raise
    return handle


async def find(record_dir: Path) -> ShimHandle | None:
    """Return the handle of the living shim recorded in `record_dir`, or None when it does not live.

    A shim whose socket file was removed makes a new one within 2 s; that is waited for.

    Raises:
        Failure: `shim.lost` when it lives but cannot be reached.
    """
    record = await asyncio.to_thread(read_record, record_dir)
    if record is None:
        return None
    handle = await attach(record.socket_path)
    if handle is not None or not _is_shim_alive(record):
        return handle
    pause = asyncio.Event()
    for _ in range(20):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pause.wait(), 0.25)
        handle = await attach(record.socket_path)
        if handle is not None or not _is_shim_alive(record):
            return handle
    raise _lost(record.socket_path)


def _is_shim_alive(record: ShimRecord) -> bool:
    shim = record.status.shim
    return record.boot_id == boot_id() and shim is not None and processes.is_alive(shim)


async def sweep(record_dir: Path) -> int:
    """Kill what is left of a tree whose shim is dead or out of reach; return how many processes were killed.

    Only processes that the record or the node agent's `family.json` names are touched: the shim, the leader, the
    leader's session, the noted family, the control group or, without one, those whose output is the engine's log, and
    all their descendants. Nothing is touched when they are of another boot, and nothing but the shim when the record
    says that its tree is gone. The caller has made sure by `find` that no shim can do this itself.

    Raises:
        Failure: `shim.lost` when processes survive 15 s of SIGKILL.
    """
    count = await killing.kill_all(record_dir.name, partial(_left_of, record_dir))
    record = read_record(record_dir)
    if record is not None:
        record.socket_path.unlink(missing_ok=True)
        if record.group is not None and record.boot_id == boot_id():
            await asyncio.to_thread(record.group.remove)
    return count


async def until_gone(handle: ShimHandle, record_dir: Path, on_trouble: Callable[[Failure], None]) -> ShimStatus | None:
    """Wait until the leader has exited and its whole tree is gone, release the shim, and return how it ended.

    None means that the shim was killed before it could record an exit; its tree is swept then. `on_trouble` hears why
    something has to be tried again: a shim out of reach, a tree that survives. Never gives up.
    """
    pause = asyncio.Event()
    while True:
        try:
            status = await handle.wait_exit()
            await handle.stop(0)
            await handle.release()
            return status
        except Failure as failure:
            on_trouble(failure)
        try:
            if await find(record_dir) is None:
                await sweep(record_dir)
                record = await asyncio.to_thread(read_record, record_dir)
                return record.status if record is not None and record.status.has_ended else None
        except Failure as failure:
            on_trouble(failure)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pause.wait(), _TROUBLE_PAUSE_S)


def _left_of(record_dir: Path, known: frozenset[ProcessMark]) -> set[ProcessMark]:
    record = read_record(record_dir)
    if record is None or record.boot_id != boot_id():
        return set()
    shim, leader = record.status.shim, record.status.leader
    named = known if shim is None else known | {shim}
    if record.status.is_tree_gone:
        # After a clean end every number but the shim's own may be a stranger's by now, as a session's name too.
        return killing.left_of(named, None)
    return killing.left_of(named | set(noted_family(record_dir)) | _members_of(record), leader)


def _members_of(record: ShimRecord) -> set[ProcessMark]:
    """Return who is of the tree, whoever their parents are: by its control group, or by its log.

    The log is private to the replica, and a fork keeps its output through new sessions and new names.
    """
    pids = record.group.pids() if record.group is not None else _writers_of(record.log_path)
    return {mark for pid in pids if (mark := processes.mark(pid)) is not None}


def _writers_of(log_path: Path) -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _writes_to(int(entry), str(log_path))]


def _writes_to(pid: int, place: str) -> bool:
    for output in (1, 2):
        with contextlib.suppress(OSError):  # it ended, or is a stranger's
            if os.readlink(f"/proc/{pid}/fd/{output}") == place:
                return True
    return False


def noted_family(record_dir: Path) -> list[ProcessMark]:
    """Return the tree's members as `note_family` last wrote them in this boot; none when there are none."""
    try:
        noted = json.loads((record_dir / "family.json").read_text())
        if noted["boot_id"] != boot_id():
            return []
        return [ProcessMark(pid=int(pid), start_ticks=int(ticks)) for pid, ticks in noted["members"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def note_family(record_dir: Path, members: list[ProcessMark]) -> None:
    """Write the tree's present members to `family.json`, for a sweep after the shim's death."""
    noted = {"boot_id": boot_id(), "members": [[member.pid, member.start_ticks] for member in members]}
    cluster.write_private(record_dir / "family.json", json.dumps(noted))
