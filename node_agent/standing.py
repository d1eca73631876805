"""How this node stands with its controller, on disk for the commands of this machine.

Comes in: what the session meets. Goes out: one small JSON file, written when it changes. Read by `slice up`, `status`
and `doctor` on a joined machine, where no admin API can be asked. Says nothing any more when its writer is gone.
"""

import asyncio
import contextlib
import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from core.clock import Clock
from core.infra import cluster
from core.infra.processes import ProcessMark, is_alive, mark


class State(StrEnum):
    """Where a node's session is."""

    DIALLING = "dialling"  # nobody answers yet, or the stream has just ended; it is dialled anew
    OPEN = "open"  # the controller hears this node
    REFUSED = "refused"  # the controller, or our certificate, says no; somebody has to act


@dataclass(frozen=True, kw_only=True)
class Standing:
    """`code` is one of `core.errors` when something is wrong; `since` an ISO 8601 instant."""

    state: State
    code: str
    message: str
    hint: str
    since: str


class StandingFile:
    """Writes a node's standing; without a file it forgets it."""

    def __init__(self, file: Path | None, clock: Clock) -> None:
        self._file = file
        self._clock = clock
        self._last: tuple[State, str] | None = None

    async def tell(self, state: State, *, code: str = "", message: str = "", hint: str = "") -> None:
        """Write how it stands now, unless state and code are what they were."""
        if self._file is None or self._last == (state, code):
            return
        self._last = (state, code)
        since = self._clock.now().isoformat(timespec="seconds")
        standing = Standing(state=state, code=code, message=message, hint=hint, since=since)
        # A full disk must not end a session for want of a line about it.
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_write, self._file, standing)


def read(file: Path) -> Standing | None:
    """Return the standing that a living node agent has written, or None."""
    try:
        values = json.loads(file.read_text())
        writer = ProcessMark(**values.pop("writer"))
        standing = Standing(**{**values, "state": State(values["state"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return standing if is_alive(writer) else None


def _write(file: Path, standing: Standing) -> None:
    writer = mark(os.getpid())
    assert writer is not None, "we live"
    cluster.write_private(file, json.dumps({**asdict(standing), "writer": asdict(writer)}) + "\n")
