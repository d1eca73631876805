"""Progress on standard error: live on a terminal, one line per step in a pipe.

Sentences and pull objects come in; nothing is decided here. Called by `cli.pulling` and `cli.readiness`.
"""

from typing import Protocol

from cli.human import size
from cli.pull_words import pull_percent, pull_sentence
from cli.tables import Item
from cli.terminal import Terminal

_STEP = 10  # percent between two lines in a pipe


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
        """Print `sentence` unless it was the last one."""
        if sentence != self._said:
            self._said = sentence
            self._terminal.note(sentence)

    def close(self) -> None:
        """Do nothing: lines stay."""


class StepBar:
    """A `PullBar` of whole lines: one per 10 %, one per reason to wait."""

    def __init__(self, terminal: Terminal) -> None:
        self._status = LineStatus(terminal)
        self._shown = -1

    def show(self, pull: Item) -> None:
        """Print a line when the pull passed another 10 % or waits for something else."""
        sentence, percent = pull_sentence(pull), pull_percent(pull)
        if percent is None or pull.get("waiting"):
            self._status.say(sentence)
        elif percent // _STEP > self._shown:
            self._shown = percent // _STEP
            self._status.say(f"{sentence}: {self._shown * _STEP} % of {size(pull.get('bytes_total'))}")

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
