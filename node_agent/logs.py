"""Engine logs: the last lines for a report, and a stream of bytes for an operator.

Comes in: the path of an `engine.log` that a shim appends to and cuts at its bound. Goes out: cleaned lines, or chunks.
Called by `node_agent.runner` and `node_agent.session`. Must not hold a whole log in memory.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

CHUNK_BYTES = 64 * 1024
REPORT_LINES = 20
"""Lines of a dead engine's log that its report carries."""
_LINE_CHARACTERS = 500
_TAIL_BYTES = 64 * 1024
_LOOK_S = 0.25
# Colours and cursor movements (ECMA-48 CSI and OSC sequences), then whatever other control characters are left.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def cleaned(line: str) -> str:
    """Return `line` without control characters and with at most 500 characters."""
    return _CONTROLS.sub("", _ESCAPES.sub("", line))[:_LINE_CHARACTERS].rstrip()


def size_of(path: Path) -> int:
    """Return the bytes of `path`, 0 when there is no such file. Blocks."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def last_lines(path: Path, count: int, since: int = 0) -> tuple[str, ...]:
    """Return the last `count` non-empty lines of `path` after byte `since`, cleaned; none without the file. Blocks."""
    try:
        with path.open("rb") as stream:
            end = stream.seek(0, 2)
            stream.seek(max(0, end - _TAIL_BYTES, since if since <= end else 0))
            text = stream.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ()
    lines = [line for raw in text.splitlines() if (line := cleaned(raw))]
    return tuple(lines[-count:]) if count else ()


def offset_of_last_lines(path: Path, count: int) -> int:
    """Return where the last `count` lines of `path` begin, in bytes. Blocks.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        position = end = stream.seek(0, 2)
        if count <= 0:
            return end
        # The line break that ends the last line begins no further one.
        missing = count + 1
        while position > 0:
            size = min(CHUNK_BYTES, position)
            position -= size
            stream.seek(position)
            block = stream.read(size)
            if position + size == end and not block.endswith(b"\n"):
                missing -= 1
            found = len(block)
            while missing and (found := block.rfind(b"\n", 0, found)) >= 0:
                missing -= 1
            if not missing:
                return position + found + 1
    return 0


def _read_at(path: Path, offset: int) -> tuple[int, bytes]:
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        # A smaller file was cut by its shim: what is there now is all new.
        start = offset if size >= offset else 0
        stream.seek(start)
        return start, stream.read(CHUNK_BYTES)


async def chunks(path: Path, tail_lines: int, *, follow: bool, ended: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield the last `tail_lines` lines in chunks of at most 64 KiB, then with `follow` what is written until `ended`.

    Raises:
        OSError: there is no such file at the beginning.
    """
    offset = await asyncio.to_thread(offset_of_last_lines, path, tail_lines)
    while not ended.is_set():
        try:
            offset, data = await asyncio.to_thread(_read_at, path, offset)
        except FileNotFoundError:
            return
        if data:
            offset += len(data)
            yield data
        elif not follow:
            return
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _LOOK_S)
