"""Prints what the API answered in the format asked for: `-o table|wide|json|yaml|name`.

API objects and their `View` come in; standard output goes out. json and yaml are the API's object untouched; name is
one name a line; tables are drawn on a terminal and aligned in a pipe. Called by every command that shows data.
"""

import json
from collections.abc import Mapping
from typing import Any

from cli.invocation import Invocation
from cli.options import Output
from cli.tables import Facts, Table, View, plain, plain_facts, table

_MACHINE = frozenset({Output.JSON, Output.YAML, Output.NAME})


class Printer:
    """Prints for one command in one format."""

    def __init__(self, invocation: Invocation, output: Output) -> None:
        self._terminal = invocation.terminal
        self._clock = invocation.clock
        self.output = output

    @property
    def is_wide(self) -> bool:
        """Whether every column is wanted."""
        return self.output is Output.WIDE

    def listing(self, answer: Mapping[str, Any], view: View) -> None:
        """Print the list `answer` (`{"items": [...]}`)."""
        items = answer.get("items", [])
        if self.output is Output.NAME:
            for item in items:
                self._terminal.data(view.name(item))
        elif self.output in _MACHINE:
            self._whole(answer)
        elif items:
            self._table(self.table_of(items, view))
        else:
            self._terminal.note(view.empty)

    def thing(self, item: Mapping[str, Any], view: View, facts: Facts) -> None:
        """Print one thing in full."""
        if self.output in _MACHINE:
            self._named(item, view)
        else:
            self.sheet(facts)

    def done(self, item: Mapping[str, Any], view: View, sentence: str) -> None:
        """Print the thing that a command made or changed; people get a `sentence` on standard error instead."""
        if self.output in _MACHINE:
            self._named(item, view)
        else:
            self._terminal.note(sentence)

    def sheet(self, facts: Facts) -> None:
        """Print a fact sheet for people."""
        if self._terminal.is_out_tty:
            from cli.drawing import drawn_facts  # rich is loaded for a terminal alone

            color = self._terminal.has_color
            self._terminal.drawn(drawn_facts(facts, columns=self._terminal.columns(), has_color=color))
        else:
            self._terminal.data(plain_facts(facts))

    def table_of(self, items: list[Mapping[str, Any]], view: View) -> Table:
        """Return the table of `items` as of now."""
        return table(view, items, self._clock.now(), is_wide=self.is_wide)

    def value(self, whole: Mapping[str, Any]) -> None:
        """Print an object of our own as json or yaml.

        Raises:
            ValueError: the format is for people or for names.
        """
        if self.output not in {Output.JSON, Output.YAML}:
            raise ValueError(f"{self.output} is no format for whole objects")
        self._whole(whole)

    def _named(self, item: Mapping[str, Any], view: View) -> None:
        if self.output is Output.NAME:
            self._terminal.data(view.name(item))
        else:
            self._whole(item)

    def _whole(self, value: Mapping[str, Any]) -> None:
        if self.output is Output.JSON:
            self._terminal.data(json.dumps(value, indent=2, ensure_ascii=False))
            return
        import yaml  # 20 ms that only `-o yaml` has to pay

        self._terminal.data(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n"))

    def _table(self, found: Table) -> None:
        if self._terminal.is_out_tty:
            from cli.drawing import drawn  # rich is loaded for a terminal alone

            color = self._terminal.has_color
            self._terminal.drawn(drawn(found, columns=self._terminal.columns(), has_color=color))
        else:
            self._terminal.data(plain(found))
