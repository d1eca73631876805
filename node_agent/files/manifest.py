"""What a source turns out to be: the files of one version and where each comes from.

Made by `node_agent.files.hub`, `ollama`, `local` and `arrivals`; worked off by `node_agent.files.arrivals`.
"""

from dataclasses import dataclass
from pathlib import Path

from core.sources import ModelSource
from node_agent.files.transfer import Remote
from node_agent.files.wants import Peer


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file: `path` in its version, bytes and digest if known beforehand (None, ""), and one of four ways to it.

    `source` names this file alone; its digest is added when it is known.
    """

    path: str
    source: str
    size_bytes: int | None = None
    sha256: str = ""
    remote: Remote | None = None
    local: Path | None = None
    wheel: ModelSource | None = None
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files of one version, the weights' first one first; `resolved` is the source with everything pinned that can
    be before the bytes are here.
    """

    items: tuple[Item, ...]
    resolved: str
