"""`slice config show|check`."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import exits
from cli.cluster.recording import loaded_settings
from cli.connection import data_dir_of
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.tables import Column, View
from core.errors import Failure
from core.infra import settings
from core.infra.settings import Loaded, Settings

_SETTINGS = View(
    name=lambda item: str(item["key"]),
    empty="no settings",
    columns=(
        Column(title="KEY", cell=lambda item, _: str(item["key"])),
        Column(title="VALUE", cell=lambda item, _: _shown(item["value"])),
        Column(title="ORIGIN", cell=lambda item, _: str(item["origin"])),
        Column(title="UNIT", cell=lambda item, _: str(item["unit"])),
        Column(title="DEFAULT", cell=lambda item, _: _shown(item["default"])),
        Column(title="MEANING", cell=lambda item, _: str(item["meaning"]), is_below=True),
        Column(title="WHY", cell=lambda item, _: str(item["why"]), is_below=True),
    ),
)


def show(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Print every setting: value, where it came from, unit, default, meaning and why that default.

    Later places win: defaults, DATA/slice.toml, SLICE_* variables, the flags of the last `slice up`.
    """
    invocation: Invocation = ctx.obj
    loaded = loaded_settings(data_dir_of(invocation.data_dir, invocation.environment), {})
    Printer(invocation, output).listing({"items": described(loaded)}, _SETTINGS)


def check(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Settings file; DATA/slice.toml by default.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Check a settings file and list every fault; exit 2 when there is one."""
    invocation: Invocation = ctx.obj
    terminal = invocation.terminal
    chosen = file or data_dir_of(invocation.data_dir, invocation.environment) / "slice.toml"
    if not chosen.exists():
        if file is None:
            terminal.note(f"{chosen} does not exist: every setting has its default")
            return exits.OK
        raise Failure("settings.unreadable", f"{chosen} does not exist", hint="name a settings file")
    faults = settings.faults(chosen)
    text = chosen.read_text()
    if output in {Output.JSON, Output.YAML}:
        items = [{**fault.as_json(), "line": line_of(text, fault.param)} for fault in faults]
        Printer(invocation, output).value({"file": str(chosen), "items": items})
    elif not faults:
        terminal.note(f"{chosen} is fine")
    for fault in faults if output not in {Output.JSON, Output.YAML} else ():
        if output is Output.NAME:
            terminal.data(str(fault.param))
        else:
            terminal.note(f"{chosen}:{line_of(text, fault.param)}: {exits.rendered(fault)}")
    return exits.USAGE if faults else exits.OK


def described(loaded: Loaded) -> list[Mapping[str, Any]]:
    """Return every setting as an object: key, value, origin, unit, default, meaning, why."""
    return [
        {
            "key": item.name,
            "value": _value(item.name, getattr(loaded.settings, item.name)),
            "origin": loaded.origin[item.name],
            "unit": item.metadata["unit"],
            "default": item.default,
            "meaning": item.metadata["meaning"],
            "why": item.metadata["why"],
        }
        for item in dataclasses.fields(Settings)
    ]


def _value(key: str, value: object) -> object:
    """Return a setting's value; a password inside a database URL is not for the screen."""
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", str(value)) if key == "database_url" else value


def _shown(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else str(value)


def line_of(text: str, key: str | None) -> int:
    """Return the line (from 1) where `key` stands in a TOML text, 1 when it is not found."""
    found = re.search(rf"^\s*\[*\"?{re.escape(key or '')}\"?\s*[=.\]]", text, re.MULTILINE) if key else None
    return 1 if found is None else text[: found.end()].count("\n") + 1
