"""Live progress on a terminal's standard error, drawn by rich. Imported only when there is such a terminal."""

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.status import Status
from rich.text import Text

from cli.human import harmless
from cli.pull_words import pull_sentence
from cli.tables import Item
from cli.terminal import Terminal


def _console(terminal: Terminal) -> Console:
    return Console(
        file=terminal.err,
        force_terminal=True,
        color_system="standard" if terminal.has_color else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


class Spinner:
    """A `StatusLine` that turns while its sentence stands."""

    def __init__(self, terminal: Terminal) -> None:
        self._status = Status("", console=_console(terminal), spinner_style="none")
        self._is_started = False

    def say(self, sentence: str) -> None:
        """Show `sentence` beside the spinner."""
        self._status.update(Text(harmless(sentence)))
        if not self._is_started:
            self._is_started = True
            self._status.start()

    def close(self) -> None:
        """Wipe the line."""
        self._status.stop()


class LiveBar:
    """A `PullBar` with bytes, speed and the time left."""

    def __init__(self, terminal: Terminal) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30, style="dim", complete_style="none", finished_style="none", pulse_style="dim"),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=_console(terminal),
        )
        self._task = self._progress.add_task("", total=None)
        self._progress.start()

    def show(self, pull: Item) -> None:
        """Show the pull as it is now."""
        self._progress.update(
            self._task,
            description=harmless(pull_sentence(pull)),
            total=pull.get("bytes_total") or None,
            completed=pull.get("bytes_done") or 0,
        )

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._progress.stop()
