"""What is wanted of the store and how far it is, as values.

Made from protobuf by `node_agent.supervisor`, read back by it for `Observed`; worked on by `node_agent.files.pulls`.
"""

from dataclasses import dataclass

from core.states import PullState


@dataclass(frozen=True, kw_only=True)
class FileOrder:
    """One file somebody wants: `want_id` is a pull's id or "", `sha256` "" and `size_bytes` 0 when not known."""

    source: str
    want_id: str = ""
    sha256: str = ""
    size_bytes: int = 0
    is_cancelled: bool = False


@dataclass(frozen=True, kw_only=True)
class FileProgress:
    """How far one order is; the last five fields mean something when it is done, or failed."""

    want_id: str
    state: PullState
    bytes_done: int = 0
    bytes_total: int = 0
    sha256: str = ""
    size_bytes: int = 0
    facts_json: str = ""
    chat_template_sha256: str = ""
    code: str = ""
    message: str = ""
