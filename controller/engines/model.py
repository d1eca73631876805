"""The values of engine installations, as they stand in the tables, and the wishes that change them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineWant:
    """A version of an engine that an operator wants on, or off, a node; with `adopt_url` it has no version."""

    node_id: str
    engine: str
    version: str
    source: str
    is_removed: bool
    adopt_url: str


@dataclass(frozen=True, kw_only=True)
class EngineDefault:
    """The version that new deployments of an engine get, and the one before it ("" : none)."""

    engine: str
    version: str
    previous: str


@dataclass(frozen=True, kw_only=True)
class NodeInstall:
    """One version of an engine that a node reports, as of its last report; found programs have no size."""

    node_id: str
    node_name: str
    engine: str
    version: str
    state: str
    message: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class NodeName:
    """One node of the cluster."""

    node_id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Use:
    """A deployment's replica that runs, or shall run, a version of an engine on a node."""

    deployment: str
    node_id: str
    engine_version: str


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A deployment that names a version of its engine and has no replica of it now."""

    deployment: str
    is_enabled: bool


@dataclass(frozen=True, kw_only=True)
class InstallWish:
    """A wish for a version of an engine; None means: choose for me, or every node."""

    version: str | None
    node: str | None = None
    source: str = ""
    allow_unlisted: bool = False
    accept_risk: bool = False


@dataclass(frozen=True, kw_only=True)
class Moving:
    """Which deployments are moved to another version: those named, or (None) all that ran the old default."""

    names: Sequence[str] | None = None
