"""What every command is given: the terminal, the environment, the clock and which cluster was asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cli.terminal import Terminal
from core.clock import Clock


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One run of `slice`; it is typer's `ctx.obj`. `data_dir` and `context` are the flags, None when not given."""

    terminal: Terminal
    environment: Mapping[str, str]
    clock: Clock
    data_dir: Path | None = None
    context: str | None = None

    def at(self, *, data_dir: Path | None, context: str | None) -> "Invocation":
        """Return the same run pointed at a cluster."""
        return replace(self, data_dir=data_dir, context=context)
