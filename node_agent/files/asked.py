"""What a peer's request for a file means: pure.

Comes in: the head of an HTTP/1.1 request, as HAProxy passes it on. Goes out: which bytes of which content, or the
status that refuses it. Called by `node_agent.files.serving`. There is one path and one kind of thing behind it.
"""

import re
from dataclasses import dataclass

from core.ids import Sha256
from node_agent.files.ranges import Range

PATH = "/slice/files/"
HEAD_BYTES = 16 * 1024

_LINE = re.compile(r"(?P<method>[A-Z]{1,16}) (?P<target>[!-~]{1,2000}) HTTP/1\.[01]\Z")
_TARGET = re.compile(rf"{re.escape(PATH)}(?P<digest>[0-9a-f]{{64}})\Z")
_RANGE = re.compile(r"bytes=(?:(?P<first>\d{1,18})-(?P<last>\d{1,18})?|-(?P<suffix>\d{1,18}))\Z")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request: the content it names; `range_text` and `guard` are its Range and If-Range, "" when it has none."""

    digest: Sha256
    is_head: bool
    range_text: str = ""
    guard: str = ""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A request that is not answered with a file."""

    status: int
    reason: str


def ask_of(head: bytes) -> Ask | Refusal:
    """Return what the head of a request (up to its empty line) asks for.

    1. It is no head of HTTP/1.x, or it announces a body: 400.
    2. Its path is not that of a file: 404, whatever the method.
    3. It neither reads nor looks: 405.
    """
    first, *rest = head.decode("latin-1").split("\r\n")
    line = _LINE.match(first)
    headers: dict[str, str] = {}
    for text in filter(None, rest):
        name, colon, value = text.partition(":")
        if not colon or name != name.strip():
            return Refusal(status=400, reason="Bad Request")
        headers[name.lower()] = value.strip()
    if line is None or "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return Refusal(status=400, reason="Bad Request")
    target = _TARGET.match(line["target"])
    if target is None:
        return Refusal(status=404, reason="Not Found")
    if line["method"] not in ("GET", "HEAD"):
        return Refusal(status=405, reason="Method Not Allowed")
    return Ask(
        digest=Sha256(target["digest"]),
        is_head=line["method"] == "HEAD",
        range_text=headers.get("range", ""),
        guard=headers.get("if-range", ""),
    )


def etag_of(digest: Sha256) -> str:
    """Return the validator of a content: its digest."""
    return f'"{digest}"'


def part_of(ask: Ask, size: int) -> Range | None:
    """Return the bytes to send of a file of `size` bytes, or None when the range that was asked for has none of them.

    RFC 9110, section 14.2: a Range that is not understood, several at once, or one whose If-Range names another
    content, is as if it were not there.
    """
    found = _RANGE.match(ask.range_text)
    if found is None or ask.guard not in ("", etag_of(ask.digest)):
        return 0, size
    if found["suffix"] is not None:
        start, end = max(0, size - int(found["suffix"])), size
    else:
        start, end = int(found["first"]), min(size, int(found["last"]) + 1) if found["last"] else size
        if found["last"] and int(found["last"]) < start:
            return 0, size
    return (start, end) if start < end else None


def is_part(ask: Ask, part: Range, size: int) -> bool:
    """Return whether the answer is a 206: a range was asked for, understood and meant."""
    return part != (0, size) or (_RANGE.match(ask.range_text) is not None and ask.guard in ("", etag_of(ask.digest)))
