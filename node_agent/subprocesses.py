"""Short-lived programs of ours (pip, venv, the header reader): run, bounded, and killed as a group when cancelled.

Comes in: a command. Goes out: how it ended. Called by `node_agent.files` and `node_agent.engines`. Engines never run
this way: they belong to shims. Each program is noted in `<directory>/<pid>.json` before it does anything, so that one
that outlives a killed node agent is found: `sweep` ends it, or two of them would work in the same directory.
"""

import asyncio
import contextlib
import json
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.infra import cluster, processes
from core.infra.processes import ProcessMark
from node_agent import killing

_OUTPUT_BYTES = 256 * 1024
_GATE = ("/bin/sh", "-c", 'read -r word && exec "$@" </dev/null', "gate")
"""Waits for a line on its input before it becomes the program (same pid, same start time). Without us there is no line
but the input's end, so a program that was never noted never begins."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a program ended, with the last 256 KiB of its two outputs together."""

    code: int
    output: str


class Children:
    """Runs programs of one node agent; `directory` holds a note of each that lives."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def run(
        self,
        argv: tuple[str, ...],
        *,
        environment: Mapping[str, str],
        on_line: Callable[[str], None] = lambda line: None,
    ) -> Done:
        """Run `argv` to its end; `on_line` hears each line. A cancelled caller kills the program's whole group first.

        A program that is not there ends with code 126 or 127.

        Raises:
            OSError: no process can be started, or it cannot be noted.
            Failure: `cluster.data_dir_unusable` when the directory of the notes cannot be used.
        """
        process = await asyncio.create_subprocess_exec(
            *_GATE,
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            limit=_OUTPUT_BYTES,
        )
        try:
            await self._note(process)
            return await _heard(process, on_line)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
            await asyncio.shield(asyncio.to_thread(self._forget, process.pid))

    async def sweep(self) -> int:
        """End what an earlier node agent's programs left running; return how many processes that were.

        Only while no node agent works in this directory: it would lose its own.

        Raises:
            Failure: `shim.lost` when a process survives; its note stays, and the others were ended all the same.
        """
        notes = await asyncio.to_thread(lambda: sorted(self._directory.glob("*.json")))
        outcomes = await asyncio.gather(*(_sweep(note) for note in notes), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return sum(outcome for outcome in outcomes if isinstance(outcome, int))

    def _note_of(self, pid: int) -> Path:
        return self._directory / f"{pid}.json"

    def _forget(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # a note that stays names a process that is gone: a sweep removes it
            self._note_of(pid).unlink()

    async def _note(self, process: Process) -> None:
        """Put the program's mark on disk, then let it through the gate."""
        assert process.stdin is not None
        writing = asyncio.ensure_future(asyncio.to_thread(self._write_note, process.pid))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})  # or the note would be written after it was removed
            raise
        process.stdin.write(b"go\n")
        process.stdin.close()

    def _write_note(self, pid: int) -> None:
        mark = processes.mark(pid)
        if mark is None:
            return  # killed by somebody already
        cluster.make_private_dir(self._directory)
        note = {"pid": mark.pid, "start_ticks": mark.start_ticks, "boot_id": killing.boot_id()}
        cluster.write_private(self._note_of(pid), json.dumps(note))


async def _sweep(note: Path) -> int:
    leader = await asyncio.to_thread(_read_note, note)
    count = 0
    if leader is not None:
        count = await killing.kill_all(f"program {leader.pid}", partial(_left_of, leader))
    await asyncio.to_thread(note.unlink, missing_ok=True)
    return count


def _left_of(leader: ProcessMark, known: frozenset[ProcessMark]) -> set[ProcessMark]:
    return killing.left_of(known, leader)


def _read_note(note: Path) -> ProcessMark | None:
    try:
        values = json.loads(note.read_text())
        if values["boot_id"] != killing.boot_id():
            return None
        return ProcessMark(pid=int(values["pid"]), start_ticks=int(values["start_ticks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def _heard(process: Process, on_line: Callable[[str], None]) -> Done:
    assert process.stdout is not None
    kept: list[str] = []
    size = 0
    while line := await _line_of(process.stdout):
        on_line(line)
        kept.append(line)
        size += len(line)
        while size > _OUTPUT_BYTES:
            size -= len(kept.pop(0))
    return Done(code=await process.wait(), output="".join(kept))


async def _line_of(stream: asyncio.StreamReader) -> str:
    try:
        return (await stream.readline()).decode(errors="replace")
    except ValueError:
        return "(a line that was too long)\n"
