"""Progress on standard error: live on a terminal, one line per step in a pipe.

Sentences and pull objects come in; nothing is decided here. Called by `cli.pulling` and `cli.readiness`.
"""

import re
from typing import Protocol

from cli.human import size
from cli.pull_words import pull_percent, pull_sentence
from cli.tables import Item
from cli.terminal import Terminal

_STEP = 10  # percent between two lines in a pipe
# A number with its unit, so that 59s and 1m00s, or 9.9 MiB and 10.0 MiB, are the same.
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)?(?:\s?(?:ms|s|m|h|d|%|B|KiB|MiB|GiB|TiB)(?![A-Za-z]))?(?:\d+[smh])?")


class StatusLine(Protocol):
    """Shows one sentence at a time: what is being waited for."""

    def say(self, sentence: str) -> None:
        """Show `sentence` instead of the last one; the same one again changes nothing."""

    def close(self) -> None:
        """Take the line away."""


class PullBar(Protocol):
    """Shows how far one pull is."""

    def show(self, pull: Item) -> None:
        """Show the pull as it is now."""

    def close(self) -> None:
        """Finish the display."""


class LineStatus:
    """A `StatusLine` of whole lines, for pipes and dumb terminals."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._said = ""

    def say(self, sentence: str) -> None:
        """Print `sentence` unless nothing but numbers changed: a count of seconds would be a line each second."""
        words = _NUMBERS.sub("#", sentence)
        if words != self._said:
            self._said = words
            self._terminal.note(sentence)

    def close(self) -> None:
        """Do nothing: lines stay."""


class StepBar:
    """A `PullBar` of whole lines: one per 10 %, one per reason to wait."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._status = LineStatus(terminal)
        self._shown = -1

    def show(self, pull: Item) -> None:
        """Print a line when the pull passed another 10 % or waits for something else."""
        sentence, percent = pull_sentence(pull), pull_percent(pull)
        if percent is None or pull.get("waiting"):
            self._status.say(sentence)
        elif percent // _STEP > self._shown:
            self._shown = percent // _STEP
            self._terminal.note(f"{sentence}: {self._shown * _STEP} % of {size(pull.get('bytes_total'))}")

    def close(self) -> None:
        """Do nothing: lines stay."""


def status_line(terminal: Terminal) -> StatusLine:
    """Return the status line that standard error can show."""
    if terminal.is_err_tty:
        from cli.live import Spinner  # rich is loaded for a terminal alone

        return Spinner(terminal)
    return LineStatus(terminal)


def pull_bar(terminal: Terminal) -> PullBar:
    """Return the progress display that standard error can show."""
    if terminal.is_err_tty:
        from cli.live import LiveBar  # rich is loaded for a terminal alone

        return LiveBar(terminal)
    return StepBar(terminal)
