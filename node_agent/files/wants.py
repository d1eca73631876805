"""What is wanted of the store and how far it is, as values.

Made from protobuf by `node_agent.supervisor`, read back by it for `Observed`; worked on by `node_agent.files.pulls`.
"""

from dataclasses import dataclass

from core.states import PullState
from protos.slice.node.v1 import node_pb2


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another node's data plane."""

    node_id: str
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class FileOrder:
    """What somebody wants: `want_id` is the id of a pull or a copy, or "" for one file of a replica.

    `sha256` "" and `size_bytes` 0 when not known, `path` is where one file lies in its version, `formats` what a pull's
    engines eat, best first (empty: anything), `peers` are nodes that have the content `sha256`, best first.
    """

    source: str
    want_id: str = ""
    sha256: str = ""
    size_bytes: int = 0
    is_cancelled: bool = False
    path: str = ""
    formats: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()

    @property
    def is_one_file(self) -> bool:
        """Whether it names one file of a version that the registry knows, so that no facts are read of it."""
        return bool(self.sha256) and (not self.want_id or bool(self.path))

    @property
    def is_awaited(self) -> bool:
        """Whether there is no way to it yet: another node is to bring the content first."""
        return bool(self.sha256) and not self.source and not self.peers

    @property
    def key(self) -> str:
        """What two orders for the same have in common."""
        kind = "file" if self.is_one_file else "version"
        return "\n".join((self.source, ",".join(self.formats), kind))


@dataclass(frozen=True, kw_only=True)
class VersionPart:
    """One file of a version: its place in it, its bytes, and a pinned source for this file alone."""

    path: str
    sha256: str
    size_bytes: int
    source: str


@dataclass(frozen=True, kw_only=True)
class FileProgress:
    """How far one order is; `message` of a running one says what it waits for, the fields from `sha256` on mean
    something when it is done, `code` when it failed.
    """

    want_id: str
    state: PullState
    bytes_done: int = 0
    bytes_total: int = 0
    sha256: str = ""
    size_bytes: int = 0
    facts_json: str = ""
    chat_template_sha256: str = ""
    chat_template: str = ""
    template_findings: tuple[str, ...] = ()
    version_files: tuple[VersionPart, ...] = ()
    resolved_source: str = ""
    code: str = ""
    message: str = ""


def order_of(want: node_pb2.FileWant) -> FileOrder:
    """Return what a message of the controller wants."""
    return FileOrder(
        source=want.source,
        want_id=want.want_id,
        sha256=want.sha256,
        size_bytes=want.size_bytes,
        is_cancelled=want.is_cancelled,
        path=want.path,
        formats=tuple(want.formats),
        peers=tuple(Peer(node_id=peer.node_id, host=peer.host, port=peer.port) for peer in want.peers),
    )
