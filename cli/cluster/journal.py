"""The journal of a start: what the supervisor does, line by line, for whoever waits for it.

The supervisor writes JSON lines to `RUNTIME/progress.jsonl`; `slice up` follows them, as does a second `slice up`
that finds a start under way.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from core.clock import Clock


class Mark(StrEnum):
    """What a line says of its step."""

    BEGUN = "begun"
    PROGRESS = "progress"
    DONE = "done"
    FAILED = "failed"  # one step failed and will be tried again
    READY = "ready"  # the whole cluster serves
    STOPPING = "stopping"  # the cluster is being ended on request
    ENDED = "ended"  # the start is given up; `data` holds the failure


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the journal; `elapsed_s` counts from the start's beginning."""

    mark: Mark
    step: str
    message: str
    elapsed_s: float
    data: Mapping[str, object] = field(default_factory=dict)


class Journal:
    """Writes the lines of one start."""

    def __init__(self, file: Path, clock: Clock) -> None:
        self._file = file
        self._clock = clock
        self._began = clock.monotonic()
        self._last: tuple[str, str, str] | None = None
        with contextlib.suppress(OSError):
            self._file.write_text("")
            self._file.chmod(0o600)

    def write(self, mark: Mark, step: str, message: str, data: Mapping[str, object] | None = None) -> None:
        """Append one line, unless it says again what the last one said."""
        if self._last == (mark, step, message):
            return
        self._last = (mark, step, message)
        elapsed = round(self._clock.monotonic() - self._began, 3)
        record = {"mark": mark.value, "step": step, "message": message, "elapsed_s": elapsed, "data": dict(data or {})}
        # A full disk must not end a part's care for want of a line about it.
        with contextlib.suppress(OSError), self._file.open("a") as stream:
            stream.write(json.dumps(record) + "\n")


class JournalReader:
    """Reads a journal as it grows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0

    def new_lines(self) -> Iterator[Line]:
        """Yield the whole lines written since the last call; none when the file is not there yet."""
        try:
            with self._file.open("rb") as stream:
                stream.seek(self._offset)
                text = stream.read()
        except OSError:
            return
        whole, newline, _ = text.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for raw in whole.splitlines():
            values = json.loads(raw)
            yield Line(**{**values, "mark": Mark(values["mark"])})
