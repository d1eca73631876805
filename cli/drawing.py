"""Tables on a terminal, drawn by rich: no boxes, a dim head, colour for trouble alone.

Imported only when a terminal is there to draw on; a `Table` comes in, text with escape sequences goes out.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from cli.human import ABSENT
from cli.tables import Facts, Table, one_line

_TROUBLE: Mapping[str, str] = {
    "failed": "red",
    "crash_loop": "red",
    "lost": "red",
    "unhealthy": "yellow",
    "backoff": "yellow",
    "suspect": "yellow",
    "waiting": "yellow",
    "offline": "yellow",
    "revoked": "yellow",
    "expired": "yellow",
}
"""Style of a state word; a state that is absent is fine and stays uncoloured."""
_PROSE_WIDTH = 24  # least room for wrapping text: narrower is unreadable, so the terminal may wrap the line instead


def drawn(found: Table, *, columns: int, has_color: bool) -> str:
    """Return the table drawn for a terminal `columns` characters wide, with its last newline."""
    beside = [index for index, column in enumerate(found.columns) if not column.is_below]
    below = [index for index, column in enumerate(found.columns) if column.is_below]
    head, *lines = _lines(_only(found, beside), columns, has_color=has_color)
    if not below:
        return _text([head, *lines])
    shown = [head]
    # A row without prose is exactly one line: `_lines` widens the console rather than wrap it.
    for row, line in zip(found.rows, lines, strict=True):
        shown.append(line)
        for text in (row[index] for index in below if row[index] != ABSENT):
            shown += [f"  {part}" for part in textwrap.wrap(text, max(columns - 2, _PROSE_WIDTH))]
    return _text(shown)


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _only(found: Table, kept: Sequence[int]) -> Table:
    return Table(columns=[found.columns[index] for index in kept], rows=[[row[i] for i in kept] for row in found.rows])


def _lines(found: Table, columns: int, *, has_color: bool) -> list[str]:
    needed = sum(
        min(width, _PROSE_WIDTH) if column.is_prose else width
        for width, column in zip(found.widths, found.columns, strict=True)
    )
    console, text = _console(max(columns, needed + 2 * len(found.columns)), has_color=has_color)
    console.print(_rich(found))
    return text.getvalue().splitlines()


def drawn_facts(found: Facts, *, columns: int, has_color: bool) -> str:
    """Return a fact sheet drawn for a terminal, with its last newline."""
    console, text = _console(columns, has_color=has_color)
    grid = RichTable(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in found.facts:
        grid.add_row(
            label, Text(one_line(value), style=_TROUBLE.get(value.split(" ")[0], "") if label == "state" else "")
        )
    console.print(grid)
    for title, part in found.parts:
        if part.rows:
            text.write(f"\n{title}\n")
            lines = drawn(part, columns=columns - 2, has_color=has_color).splitlines()
            text.write("".join(f"  {line}\n" for line in lines))
    return _text(text.getvalue().splitlines())


def _console(columns: int, *, has_color: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    console = Console(
        file=text,
        width=columns,
        force_terminal=True,
        color_system="standard" if has_color else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    return console, text


def _rich(found: Table) -> RichTable:
    made = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column, width in zip(found.columns, found.widths, strict=True):
        made.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            no_wrap=not column.is_prose,
            overflow="fold",
            min_width=None if column.is_prose else width,
        )
    for row in found.rows:
        cells = [
            Text(text, style=_TROUBLE.get(text, "") if column.is_state else "")
            for text, column in zip(row, found.columns, strict=True)
        ]
        made.add_row(*cells)
    return made
