"""Which bytes of a file have come, and what an answer to a request for some of them means.

Pure: no I/O. Called by `node_agent.files.download`. A file is put together from pieces that come in any order, from
several tries, of a server that may ignore ranges or change the file meanwhile.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

Range = tuple[int, int]
"""Half-open: from the first byte to the one after the last."""

_CONTENT_RANGE = re.compile(r"^bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")


def joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Return the same bytes as sorted ranges that neither touch nor overlap."""
    out: list[Range] = []
    for start, end in sorted(one for one in ranges if one[0] < one[1]):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return tuple(out)


def missing(had: Sequence[Range], size: int) -> tuple[Range, ...]:
    """Return what of `size` bytes is in none of `had`."""
    out: list[Range] = []
    at = 0
    for start, end in joined(had):
        if start >= size:
            break
        if at < start:
            out.append((at, start))
        at = max(at, end)
    if at < size:
        out.append((at, size))
    return tuple(out)


def pieces(gaps: Sequence[Range], piece_bytes: int) -> Iterator[Range]:
    """Cut ranges into pieces of at most `piece_bytes`, in order."""
    for start, end in gaps:
        for at in range(start, end, piece_bytes):
            yield at, min(at + piece_bytes, end)


class Meaning(StrEnum):
    """What an answer to a request for a range is."""

    PART = "part"  # the range that was asked for, of the file that was begun
    WHOLE = "whole"  # the whole file from its first byte: the server ignores ranges, or the file is another one now
    CHANGED = "changed"  # a part of another file than the one that was begun
    WRONG = "wrong"  # no answer to what was asked


@dataclass(frozen=True, kw_only=True)
class Offer:
    """An answer's head: the file's whole size and its validator, None and "" when it does not say."""

    meaning: Meaning
    size: int | None = None
    validator: str = ""


def meaning_of(
    *, status: int, content_range: str, length: int | None, validator: str, asked: Range, size: int | None, known: str
) -> Offer:
    """Return what the head of an answer says.

    `asked` is the range of the request, `size` and `known` are what is known of the file already: its size (None: not
    yet) and its strong validator (""). RFC 9110, sections 14.4 and 15.3.7; a 416 says that the file is shorter now.
    """
    if status == 200:
        return Offer(meaning=Meaning.WHOLE, size=length, validator=validator)
    if status == 416:
        return Offer(meaning=Meaning.CHANGED)
    found = _CONTENT_RANGE.match(content_range)
    if status != 206 or found is None:
        return Offer(meaning=Meaning.WRONG)
    start, end = int(found[1]), int(found[2]) + 1
    total = None if found[3] == "*" else int(found[3])
    if start != asked[0] or not start < end <= asked[1]:
        return Offer(meaning=Meaning.WRONG)
    has_changed = (known and validator and known != validator) or (size is not None and total not in (None, size))
    return Offer(meaning=Meaning.CHANGED if has_changed else Meaning.PART, size=total, validator=validator)


def strong(validator: str) -> str:
    """Return an ETag that may be used for `If-Range` (RFC 9110, section 13.1.5), or ""."""
    return validator if validator.startswith('"') and validator.endswith('"') and len(validator) > 2 else ""
