"""The three standard streams and what they can do: the only place that writes to them.

Made once by `cli.main` and handed on. Data goes to standard output, progress and notes to standard error. Text that
others wrote is made harmless before a terminal sees it; a pipe gets it untouched.
"""

import io
import os
import select
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TextIO

from cli.human import harmless

_DEFAULT_COLUMNS = 80
_STDIN_PATIENCE_S = 2.0
"""Wait for the first byte of a pipe beside a prompt: longer, and a harness's open but silent stdin would hang us."""


class ReaderGone(Exception):
    """Whoever read our standard output went away, e.g. `slice list | head -1`: no failure, but nothing more to do."""


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """Standard input, output and error; `is_*_tty` say that a capable terminal is behind one (TERM=dumb is none)."""

    stdin: TextIO
    out: TextIO
    err: TextIO
    is_in_tty: bool
    is_out_tty: bool
    is_err_tty: bool
    has_color: bool

    def data(self, text: str) -> None:
        """Write `text` and a newline to standard output."""
        self._write((harmless(text) if self.is_out_tty else text) + "\n")

    def piece(self, text: str) -> None:
        """Write `text` as it is, without a newline, to standard output and flush it."""
        self._write(harmless(text) if self.is_out_tty else text)

    def drawn(self, text: str) -> None:
        """Write `text` that we drew ourselves, escape sequences and all, to standard output."""
        self._write(text)

    def _write(self, text: str) -> None:
        try:
            self.out.write(text)
            self.out.flush()
        except BrokenPipeError as error:
            raise ReaderGone from error

    def aside(self, text: str) -> None:
        """Write `text` as it is, without a newline, to standard error."""
        self.err.write(harmless(text) if self.is_err_tty else text)
        self.err.flush()

    def note(self, text: str) -> None:
        """Write a line for people to standard error."""
        self.err.write((harmless(text) if self.is_err_tty else text) + "\n")
        self.err.flush()

    def columns(self) -> int:
        """Return the width of the terminal in characters, 80 when it does not say."""
        for stream in (self.out, self.err):
            try:
                return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_COLUMNS
            except (OSError, ValueError):
                continue
        return _DEFAULT_COLUMNS

    def piped_text(self, *, beside_prompt: bool) -> str:
        """Return what is piped or redirected into standard input, stripped; empty for a terminal.

        Beside a prompt a pipe must deliver its first byte within 2 s, else it is left alone with a note.
        """
        if self.stdin.closed or self.stdin.isatty():
            return ""
        if beside_prompt:
            if not (_is_kind(self.stdin, stat.S_ISREG) or _is_stream(self.stdin)):
                return ""  # /dev/null and the like: a harness's way to say that there is nothing
            if _is_stream(self.stdin) and not select.select([self.stdin], [], [], _STDIN_PATIENCE_S)[0]:
                self.note(f"nothing came on standard input within {_STDIN_PATIENCE_S:.0f} s; only the prompt is sent")
                return ""
        return self.stdin.read().strip()


def of_process(environment: Mapping[str, str]) -> Terminal:
    """Return the terminal of this process, obeying NO_COLOR (no-color.org) and TERM=dumb."""
    is_capable = environment.get("TERM", "") not in {"dumb", "unknown"}
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # A locale without UTF-8, or a piped file that is none, must not turn a question into a crash.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    return Terminal(
        stdin=sys.stdin or io.StringIO(),
        out=sys.stdout,
        err=sys.stderr,
        is_in_tty=_is_tty(sys.stdin),
        is_out_tty=is_capable and _is_tty(sys.stdout),
        is_err_tty=is_capable and _is_tty(sys.stderr),
        has_color=is_capable and not environment.get("NO_COLOR"),
    )


def _is_tty(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _is_stream(stream: TextIO) -> bool:
    return _is_kind(stream, stat.S_ISFIFO) or _is_kind(stream, stat.S_ISSOCK)


def _is_kind(stream: TextIO, is_such: Callable[[int], bool]) -> bool:
    try:
        return is_such(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False
