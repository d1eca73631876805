"""Engines in words: rows of `slice engine list`, the sheet of `slice engine show`, and what an install does now.

Pure: Engine objects of docs/admin-api.md come in, rows, facts and sentences go out.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cli.human import ABSENT, size
from cli.tables import Column, Facts, Item, View, table

Row = dict[str, Any]


def _cell(key: str) -> Any:
    def cell(item: Item, _: datetime) -> str:
        value = item.get(key)
        if isinstance(value, list):
            return ", ".join(str(part) for part in value) or ABSENT
        return ABSENT if value in (None, "") else str(value)

    return cell


INSTALLS = View(
    name=lambda item: str(item.get("engine")),
    empty="no engines",
    columns=(
        Column(title="ENGINE", cell=_cell("engine")),
        Column(title="VERSION", cell=_cell("version")),
        Column(title="STATE", cell=_cell("state"), is_state=True),
        Column(title="NODE", cell=_cell("node")),
        Column(title="SIZE", cell=lambda item, _: size(item.get("size_bytes")), is_number=True),
        Column(title="DEFAULT", cell=lambda item, _: "yes" if item.get("is_default") else ABSENT),
        Column(title="USED BY", cell=_cell("deployments")),
        Column(title="DIGEST", cell=_cell("digest"), is_wide=True),
        Column(title="DETAIL", cell=_cell("detail"), is_below=True, is_optional=True),
    ),
)

ENGINES = View(name=lambda item: str(item.get("name")), empty="no engines", columns=INSTALLS.columns)
"""Names whole Engine objects; their tables are made of `rows`."""

_MODELS = View(
    name=lambda item: str(item.get("name")),
    empty="",
    columns=(
        Column(title="MODEL", cell=_cell("name")),
        Column(title="NODE", cell=_cell("node")),
        Column(title="SIZE", cell=lambda item, _: size(item.get("size_bytes")), is_number=True),
        Column(title="DIGEST", cell=lambda item, _: str(item.get("digest") or ABSENT)[:19]),
    ),
)


def rows(engine: Item) -> list[Row]:
    """Return one row per version and node; an engine that is nowhere has one that says whether it could be."""
    found: list[Row] = []
    for node in engine.get("nodes") or []:
        name = {"engine": engine.get("name"), "node": node.get("node")}
        for install in node.get("installs") or []:
            detail = "; ".join(str(text) for text in (install.get("message"), install.get("warning")) if text)
            found.append({**install, **name, "detail": detail})
        adopted = node.get("adopted")
        if adopted:
            count = len(adopted.get("models") or [])
            what = f"{count} model{'' if count == 1 else 's'} at {adopted.get('base_url')}"
            detail = "; ".join(str(text) for text in (what, adopted.get("message")) if text)
            state = "adopted" if not adopted.get("message") else "silent"
            found.append({**name, "version": adopted.get("version"), "state": state, "detail": detail})
    return found or [_nowhere(engine)]


def _nowhere(engine: Item) -> Row:
    nodes = engine.get("nodes") or []
    reasons = sorted({str(node.get("reason")) for node in nodes if node.get("reason")})
    is_usable = any(node.get("is_usable") for node in nodes) or not nodes
    return {
        "engine": engine.get("name"),
        "version": engine.get("default_version"),
        "state": "available" if is_usable else "unusable",
        "is_default": bool(engine.get("default_version")),
        "detail": "" if is_usable else "; ".join(reasons),
    }


def engine_facts(engine: Item, now: datetime, *, is_wide: bool) -> Facts:
    """Return the sheet of an engine: what it can, its versions, and where they are."""
    floor = engine.get("floor") or {}
    newest = "the newest program on the node" if engine.get("is_program") else ABSENT
    models = [
        {**model, "node": node.get("node")}
        for node in engine.get("nodes") or []
        for model in (node.get("adopted") or {}).get("models") or []
    ]
    return Facts(
        facts=(
            ("name", str(engine.get("name"))),
            ("default version", str(engine.get("default_version") or newest)),
            ("before that", str(engine.get("previous_version") or ABSENT)),
            ("known versions", _list(engine.get("versions"))),
            ("lowest safe version", f"{floor.get('version')} ({floor.get('advisories')})" if floor else ABSENT),
            ("kind", "a program of its own" if engine.get("is_program") else "a Python environment, or nothing"),
            ("formats", _list([word or "none" for word in engine.get("formats") or []])),
            ("endpoints", _list(engine.get("endpoints"))),
            ("capabilities", _list(engine.get("capabilities"))),
            ("runtimes", _list(engine.get("runtimes"))),
            ("deployments", _list(engine.get("deployments"))),
        ),
        parts=(
            ("installations", table(INSTALLS, rows(engine), now, is_wide=is_wide)),
            ("adopted models", table(_MODELS, models, now, is_wide=is_wide)),
        ),
    )


def _list(values: Sequence[object] | None) -> str:
    return ", ".join(str(value) for value in values or ()) or ABSENT


def installs_of(engine: Item, version: str, node: str | None) -> list[Row]:
    """Return the installs of one version on nodes that can be waited for; on `node` alone when it is given."""
    return [
        {**install, "node": item.get("node")}
        for item in engine.get("nodes") or []
        if item.get("state") == "ready" and node in (None, item.get("node"))
        for install in item.get("installs") or []
        if install.get("version") == version
    ]


def absent_nodes(engine: Item, version: str) -> list[str]:
    """Return the nodes that are not heard of and want a version: they hear of it later."""
    return [
        str(item.get("node"))
        for item in engine.get("nodes") or []
        if item.get("state") != "ready"
        and any(one.get("version") == version and one.get("is_wanted") for one in item.get("installs") or [])
    ]


def install_sentence(engine: Item, install: Item) -> str:
    """Return what one node does for a version now."""
    doing = f": {install['message']}" if install.get("message") else ""
    return f"{install.get('node')}: {engine.get('name')} {install.get('version')} is {install.get('state')}{doing}"
