"""Showing a start to a person: steps with times on a terminal, plain lines in a pipe; everything on standard error."""

import shutil
import sys
from typing import Protocol, TextIO

from cli.cluster.journal import Line, Mark
from core.infra.settings import process_environment

_TITLES = {
    "postgres": "PostgreSQL",
    "controller": "controller",
    "door": "front door (Ray Serve)",
    "node_agent": "node agent",
    "starter": "starter model",
    "cluster": "cluster",
}
_SIGNS = {
    Mark.BEGUN: "...",
    Mark.PROGRESS: "...",
    Mark.DONE: "ok ",
    Mark.FAILED: "!! ",
    Mark.READY: "ok ",
    Mark.ENDED: "!! ",
    Mark.STOPPING: "...",
}


class Show(Protocol):
    """Shows the lines of a journal as they come."""

    def line(self, line: Line) -> None:
        """Show one line."""

    def finish(self) -> None:
        """Leave the terminal tidy."""


class PlainShow:
    """One plain line per event, without progress noise."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = ""

    def line(self, line: Line) -> None:
        """Print one line; a progress line only when its message changed."""
        text = f"{_SIGNS[line.mark]} {_TITLES.get(line.step, line.step)}: {line.message}"
        if text != self._last:
            print(f"{line.elapsed_s:6.1f}s {text}", file=self._stream, flush=True)
        self._last = text

    def finish(self) -> None:
        """Nothing to tidy."""


class TerminalShow:
    """One row per step, rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rows: dict[str, str] = {}

    def line(self, line: Line) -> None:
        """Redraw the rows with what `line` says."""
        if self._rows:
            self._stream.write(f"\x1b[{len(self._rows)}F")
        title = _TITLES.get(line.step, line.step)
        row = f"{_SIGNS[line.mark]} {title:<24}{line.elapsed_s:6.1f}s  {line.message}"
        # A row that wraps would be two lines, and the next redraw would begin one line too low.
        self._rows[line.step] = row[: shutil.get_terminal_size().columns - 1]
        for row in self._rows.values():
            self._stream.write(f"\x1b[2K{row}\n")
        self._stream.flush()

    def finish(self) -> None:
        """Nothing to tidy: every row is whole."""


def show_for(stream: TextIO = sys.stderr, *, is_plain: bool) -> Show:
    """Return the way to show a start on `stream`; plain also where a terminal cannot move its cursor."""
    is_dumb = process_environment().get("TERM", "dumb") == "dumb"
    return PlainShow(stream) if is_plain or is_dumb or not stream.isatty() else TerminalShow(stream)
