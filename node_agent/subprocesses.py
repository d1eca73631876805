"""Short-lived programs of ours (pip, venv, the header reader): run, bounded, and killed as a group when cancelled.

Called by `node_agent.files` and `node_agent.engines`. Engines never run this way: they belong to shims.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_OUTPUT_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a program ended, with the last 256 KiB of its two outputs together."""

    code: int
    output: str


async def run(
    argv: tuple[str, ...], *, environment: Mapping[str, str], on_line: Callable[[str], None] = lambda line: None
) -> Done:
    """Run `argv` to its end; `on_line` hears each line. A cancelled caller kills the program's whole group first.

    Raises:
        OSError: the program cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
        limit=_OUTPUT_BYTES,
    )
    assert process.stdout is not None
    kept: list[str] = []
    try:
        size = 0
        while line := await _line_of(process.stdout):
            on_line(line)
            kept.append(line)
            size += len(line)
            while size > _OUTPUT_BYTES:
                size -= len(kept.pop(0))
        return Done(code=await process.wait(), output="".join(kept))
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())


async def _line_of(stream: asyncio.StreamReader) -> str:
    try:
        return (await stream.readline()).decode(errors="replace")
    except ValueError:
        return "(a line that was too long)\n"
