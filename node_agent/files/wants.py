"""What is wanted of the store and how far it is, as values.

Made from protobuf by `node_agent.supervisor`, read back by it for `Observed`; worked on by `node_agent.files.pulls`.
"""

from dataclasses import dataclass

from core.states import PullState


@dataclass(frozen=True, kw_only=True)
class FileOrder:
    """What somebody wants: `want_id` is a pull's id, or "" for one file of a replica.

    `sha256` "" and `size_bytes` 0 when not known, `path` is where a replica's file lies in its version, `formats` what
    a pull's engines eat, best first (empty: anything).
    """

    source: str
    want_id: str = ""
    sha256: str = ""
    size_bytes: int = 0
    is_cancelled: bool = False
    path: str = ""
    formats: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What two orders for the same have in common; of a replica's file no facts are read, so it is no version."""
        kind = "version" if self.want_id or not self.sha256 else "file"
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
