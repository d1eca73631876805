"""Command groups that import a command's module only when that command runs.

A table `name -> Entry` comes in, a typer group goes out. `slice --help` prints the table's own sentences, so nothing
behind them is imported. Called by `cli.tree`; it knows no command.
"""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import typer
import typer.core
from typer.core import TyperGroup
from typer.main import get_command

from core.errors import Failure

_OURS = frozenset({"adapters", "cli", "controller", "core", "gateway", "node_agent", "protos", "scheduler"})

TYPER_SETTINGS: Mapping[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    # typer would draw help with rich: 0.1 s of imports and boxes that nobody asked for.
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One command: where its function lives (`module:function`), its sentence in the list, and its section there."""

    target: str
    summary: str
    section: str = "Commands"
    is_alias: bool = False


@dataclass(frozen=True, kw_only=True)
class GroupEntry:
    """One noun with verbs of its own."""

    summary: str
    verbs: Mapping[str, "Entry | GroupEntry"]
    section: str = "Commands"
    is_alias: bool = False


Table = Mapping[str, Entry | GroupEntry]


class LazyGroup(TyperGroup):
    """A group over `table`; subclasses set it (typer builds the instance itself)."""

    table: ClassVar[Table] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Return every name, aliases last, without importing anything."""
        return sorted(self.table, key=lambda name: self.table[name].is_alias)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command called `cmd_name`, importing its module now, or None."""
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        if isinstance(entry, GroupEntry):
            return group(cmd_name, entry.verbs, summary=entry.summary)
        module, _, function = entry.target.partition(":")
        try:
            found = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            raise not_installed(cmd_name, error) from error
        app = typer.Typer(**TYPER_SETTINGS)
        app.command(cmd_name)(found)
        return get_command(app)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that `args` begin with; an unknown one fails with the closest name."""
        name = args[0]
        if name not in self.table and not name.startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, list(self.table), n=1)
            ctx.fail(f"no command {name!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the group's own options; without any argument print the help and end.

        Raises:
            typer.Exit: the help was printed; status 0 for `slice` alone, 2 for a noun that lacks its verb.
        """
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=ctx.parent is not None)
            raise typer.Exit(2 if ctx.parent is not None else 0)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by section, from the table alone."""
        shown = {name: entry for name, entry in self.table.items() if not entry.is_alias}
        for section in dict.fromkeys(entry.section for entry in shown.values()):
            with formatter.section(section):
                formatter.write_dl([(name, e.summary) for name, e in shown.items() if e.section == section])

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the names that begin with `incomplete`, without importing what is behind them."""
        return [
            typer.core.CompletionItem(name, help=entry.summary)  # type: ignore[attr-defined]  # typer marks none as public
            for name, entry in self.table.items()
            if name.startswith(incomplete) and not entry.is_alias
        ]


def not_installed(command: str, error: ModuleNotFoundError) -> Exception:
    """Return the failure of a command whose packages this installation lacks, or `error` when ours is the fault."""
    missing = (error.name or "").partition(".")[0]
    if missing in _OURS:
        return error
    return Failure(
        "cluster.install_incomplete",
        f"`slice {command}` needs the Python package {missing!r}, which is not installed here",
        hint="pip install 'slice-cluster[server]' brings all that a controller's machine needs",
    )


def group_class(table: Table) -> type[LazyGroup]:
    """Return a group class over `table`."""
    return type("TableGroup", (LazyGroup,), {"table": table})


def group(name: str, table: Table, *, summary: str) -> Any:
    """Return a ready command for a noun with the verbs of `table`."""
    app = typer.Typer(name=name, cls=group_class(table), help=summary, **TYPER_SETTINGS)
    app.callback()(_no_options)
    return get_command(app)


def _no_options() -> None:
    """Nouns have no options of their own."""
