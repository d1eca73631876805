"""Parts: the processes that the supervisor owns, each startable, adoptable and watched; `teardown` ends them.

A part outlives the supervisor (own session, no parent-death signal); its pid and start time are recorded, so that the
next supervisor adopts it and `slice down` finds it without anyone's help.
"""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.errors import CODES, Failure
from core.infra import cluster
from core.infra.processes import ProcessMark, family, is_alive, mark, put_first, send_signal
from node_agent import shim_client

FATAL_EXIT = 78  # sysexits.h EX_CONFIG: starting it again cannot help
_LOG_LIMIT_BYTES = 20 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a part ended: `failure` is set when it said why starting again cannot help; `status` None when adopted."""

    status: int | None
    failure: Failure | None = None


class Part(Protocol):
    """What the supervisor needs of a part."""

    @property
    def name(self) -> str:
        """Its name in logs and records."""

    async def adopt(self) -> bool:
        """Take over a living one left by an earlier supervisor; return whether there was one."""

    async def start(self) -> None:
        """Start a new one."""

    async def is_ready(self) -> bool:
        """Return whether it does its work."""

    async def ended(self) -> Ended:
        """Wait for its end."""

    def last_words(self) -> str:
        """Return the last line of its log."""


async def wait_gone(process: ProcessMark, timeout_s: float) -> bool:
    """Wait until `process` has ended, at most `timeout_s`; return whether it has. Works for strangers' children too."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    try:
        if not is_alive(process):
            return True
        loop.add_reader(handle, gone.set)
        async with asyncio.timeout(timeout_s):
            await gone.wait()
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def stop_process(process: ProcessMark, first: signal.Signals, grace_s: float) -> None:
    """Ask `process` to end with `first`; past the grace kill it with all its descendants."""
    relatives = family(frozenset({process.pid}))
    if is_alive(process) and send_signal(process, first) and await wait_gone(process, grace_s):
        relatives = [item for item in relatives if is_alive(item)]
    for item in relatives:
        send_signal(item, signal.SIGKILL)
    for item in relatives:
        await wait_gone(item, 10.0)


def record_file(parts_dir: Path, name: str) -> Path:
    """Return where a part's process is recorded."""
    return parts_dir / f"{name}.json"


def recorded(parts_dir: Path, name: str) -> ProcessMark | None:
    """Return the recorded process of a part when it still lives."""
    try:
        values = json.loads(record_file(parts_dir, name).read_text())
    except (OSError, ValueError):
        return None
    process = ProcessMark(pid=int(values["pid"]), start_ticks=int(values["start_ticks"]))
    is_this_boot = values.get("boot_id") == shim_client.boot_id()
    return process if is_this_boot and is_alive(process) else None


def record(parts_dir: Path, name: str, process: ProcessMark) -> None:
    """Record the process of a part."""
    facts = {"pid": process.pid, "start_ticks": process.start_ticks, "boot_id": shim_client.boot_id()}
    text = json.dumps(facts)
    cluster.write_private(record_file(parts_dir, name), text)


class ProcessPart:
    """A part that is one plain process of ours, or PostgreSQL."""

    def __init__(
        self,
        *,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log_file: Path,
        parts_dir: Path,
        is_ready: Callable[[], Awaitable[bool]],
        user: str | None = None,
        before_start: Callable[[], Awaitable[object]] | None = None,
        nice: int = 0,
    ) -> None:
        self._name = name
        self._argv = list(argv)
        self._environment = environment
        self._log_file = log_file
        self._parts_dir = parts_dir
        self._is_ready = is_ready
        self._user = user
        self._before_start = before_start
        self._nice = nice
        self._child: subprocess.Popen[bytes] | None = None
        self._process: ProcessMark | None = None

    @property
    def name(self) -> str:
        """Its name in logs and records."""
        return self._name

    async def adopt(self) -> bool:
        """Take over the recorded process when it lives."""
        self._process = recorded(self._parts_dir, self._name)
        return self._process is not None

    async def start(self) -> None:
        """Start the process in a session of its own and record it."""
        if self._before_start is not None:
            await self._before_start()
        _failure_file(self._parts_dir, self._name).unlink(missing_ok=True)
        _turn_over(self._log_file)
        self._child = await asyncio.to_thread(self._spawn)
        self._process = mark(self._child.pid)
        if self._nice:
            put_first(self._child.pid, self._nice)  # where we may not, it is started all the same
        if self._process is not None:
            record(self._parts_dir, self._name, self._process)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with self._log_file.open("ab") as log:
            return subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._environment),
                cwd="/",
                start_new_session=True,
                user=self._user,
            )

    async def is_ready(self) -> bool:
        """Return whether its probe passes."""
        return await self._is_ready()

    def last_words(self) -> str:
        """Return the last line of its log."""
        return last_line(self._log_file)

    async def ended(self) -> Ended:
        """Wait for the process's end and read why, when it said so."""
        if self._process is not None:
            await wait_gone(self._process, timeout_s=10 * 365 * 86400)
        status = await asyncio.to_thread(self._child.wait) if self._child is not None else None
        return Ended(status=status, failure=read_failure(self._parts_dir, self._name) if status == FATAL_EXIT else None)


def last_line(log_file: Path) -> str:
    """Return the last line of a log, or a word that there is none; at most 400 characters."""
    try:
        with log_file.open("rb") as stream:
            stream.seek(max(0, log_file.stat().st_size - 4096))
            lines = stream.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:400] if lines else f"nothing in {log_file}"


def _failure_file(parts_dir: Path, name: str) -> Path:
    return parts_dir / f"{name}.failure.json"


def write_failure(parts_dir: Path, name: str, failure: Failure) -> None:
    """Leave word why a part ended for good; its process then exits with `FATAL_EXIT`."""
    text = json.dumps({"code": failure.code, "message": failure.message, "hint": failure.hint})
    cluster.write_private(_failure_file(parts_dir, name), text)


def read_failure(parts_dir: Path, name: str) -> Failure:
    """Return the word that a part left."""
    try:
        values = json.loads(_failure_file(parts_dir, name).read_text())
        code = values["code"] if values["code"] in CODES else "internal.unexpected"
        return Failure(code, values["message"], hint=values["hint"])
    except (OSError, ValueError, KeyError):
        return Failure(
            "cluster.start_failed", f"the {name} ended without saying why", hint="`slice doctor` looks further"
        )


def _turn_over(log_file: Path) -> None:
    """Keep one old log of at most the limit: our own processes write little, but forever."""
    if log_file.exists() and log_file.stat().st_size > _LOG_LIMIT_BYTES:
        log_file.rename(log_file.with_suffix(".log.1"))
