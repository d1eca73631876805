"""Event logging: one JSON object a line on standard error, which each process's owner sends to a file."""

import json
import sys
import traceback
from datetime import UTC
from typing import TextIO

from core.clock import Clock


class Log:
    """Writes `{"at", "level", "part", "event", ...}` lines; never given prompts, keys or user code."""

    def __init__(self, part: str, clock: Clock, stream: TextIO | None = None) -> None:
        self._part = part
        self._clock = clock
        self._stream = stream

    def info(self, event: str, **fields: object) -> None:
        """Log an `event` that an operator may want to see."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log an `event` that may need somebody."""
        self._write("warning", event, fields)

    def error(self, event: str, *, exc: BaseException | None = None, **fields: object) -> None:
        """Log an `event` that is a fault, with the traceback of `exc` for the log file alone."""
        if exc is not None:
            fields["traceback"] = "".join(traceback.format_exception(exc))
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        at = self._clock.now().astimezone(UTC).isoformat(timespec="milliseconds")
        record = {"at": at, "level": level, "part": self._part, "event": event, **fields}
        stream = self._stream or sys.stderr
        stream.write(json.dumps(record, default=str) + "\n")
        stream.flush()
