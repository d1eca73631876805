"""Tables and fact sheets as values: what the columns are and what stands in them; plain text from them.

Pure. `cli.views` declares a `View` per kind of thing; `cli.printing` prints it, through `cli.drawing` on a terminal and
through `plain` in a pipe.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cli.human import ABSENT, harmless

Item = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: `cell` makes its text of an item and the current instant.

    `is_prose` columns may wrap on a terminal, the others never: half an identifier is of no use. `is_optional` ones
    vanish while every cell is absent. `is_below` ones stand under their row on a terminal, where they have the whole
    width, and are the last columns in a pipe; their view has no prose column beside them.
    """

    title: str
    cell: Callable[[Item, datetime], str]
    is_wide: bool = False
    is_number: bool = False
    is_prose: bool = False
    is_optional: bool = False
    is_state: bool = False
    is_below: bool = False


@dataclass(frozen=True, kw_only=True)
class View:
    """How one kind of thing is listed: its name, its columns, and the note for an empty list."""

    name: Callable[[Item], str]
    columns: Sequence[Column]
    empty: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table ready to print: titles and rows of texts, one list of columns for both."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    @property
    def widths(self) -> list[int]:
        """Characters that each column needs."""
        return [
            max([len(column.title), *(len(row[index]) for row in self.rows)])
            for index, column in enumerate(self.columns)
        ]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One thing in full: labelled facts, then tables of its parts under their titles."""

    facts: Sequence[tuple[str, str]]
    parts: Sequence[tuple[str, Table]] = ()


def table(view: View, items: Sequence[Item], now: datetime, *, is_wide: bool) -> Table:
    """Return the table of `items`; wide columns and optional empty ones are left out as they should be."""
    wanted = [column for column in view.columns if is_wide or not column.is_wide]
    cells = [[one_line(column.cell(item, now)) for column in wanted] for item in items]
    kept = [
        index
        for index, column in enumerate(wanted)
        if not column.is_optional or any(row[index] != ABSENT for row in cells)
    ]
    return Table(columns=[wanted[index] for index in kept], rows=[[row[index] for index in kept] for row in cells])


def one_line(text: str) -> str:
    """Return `text` on one line, harmless, or `-` when it is empty."""
    return harmless(" ".join(text.split())) or ABSENT


def plain(found: Table) -> str:
    """Return the table as aligned columns, two spaces apart, without trailing blanks or a last newline."""
    widths = found.widths
    rows = [[column.title for column in found.columns], *found.rows]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column.is_number else text.ljust(width)
            for text, width, column in zip(row, widths, found.columns, strict=True)
        ).rstrip()
        for row in rows
    )


def plain_facts(found: Facts) -> str:
    """Return the facts as aligned `label  text` lines, and each part's table indented below its title."""
    shown = [(label, one_line(text)) for label, text in found.facts]
    width = max((len(label) for label, _ in shown), default=0)
    lines = [f"{label.ljust(width)}  {text}".rstrip() for label, text in shown]
    for title, part in found.parts:
        if part.rows:
            lines += ["", title, *(f"  {line}" for line in plain(part).splitlines())]
    return "\n".join(lines)
