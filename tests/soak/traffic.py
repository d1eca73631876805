"""What clients and operators met while something was broken: answers of the door, writes to the admin API."""

import contextlib
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.infra import cluster
from tests.many.three import Heard, Three

_WRITER = Path(__file__).with_name("writer.py")


@dataclass
class Written:
    """What a writer has said so far; instants are this machine's monotonic clock."""

    requests: list[dict[str, Any]] = field(default_factory=list)

    def of(self, *events: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Return the requests of these kinds (keys, nodes, replicas) that ended after `since`."""
        return [one for one in self.requests if one["event"] in events and one["ended"] >= since]

    def acknowledged(self) -> set[str]:
        """Return the names that the controller said it has written."""
        return {one["name"] for one in self.of("keys") if one["status"] == 201}

    def read(self, what: str, since: float) -> list[dict[str, Any]] | None:
        """Return what the last good look at `what` saw, if it began after `since`."""
        for one in reversed(self.requests):
            if one["event"] == what and one["status"] == 200:
                return list(one["items"]) if one["begun"] >= since else None
        return None


@contextlib.asynccontextmanager
async def writing(three: Three, *, every_s: float = 0.4) -> AsyncIterator[Written]:
    """Write and read through the admin API for the length of the block."""
    block = cluster.load(three.here.data_dir)
    assert block is not None
    settings = {
        "admin": block.controller_url,
        "token": block.secret_file("operator_token").read_text().strip(),
        "stem": f"w-{uuid.uuid4().hex[:8]}",
        "every_s": every_s,
    }
    written = Written()
    async with three.beside(_WRITER, settings, written.requests.append):
        yield written


def failures(heard: Heard, since: float) -> Counter[str]:
    """Return what went wrong with requests that ended after `since`, those under way then included."""
    return Counter(
        "cut: stream" if one["error"].startswith("cut") else one["error"]
        for one in heard.answers
        if one["ended"] >= since and one["error"]
    )


def longest_gap_s(heard: Heard, since: float, until: float) -> float:
    """Return the longest time between `since` and `until` in which no answer became whole, of any client."""
    ends = sorted(one["ended"] for one in heard.answers if not one["error"] and since <= one["ended"] <= until)
    edges = [since, *ends, until]
    return max(after - before for before, after in itertools.pairwise(edges))


def refusals(requests: list[dict[str, Any]]) -> Counter[str]:
    """Return how requests to the admin API failed: status, code, and whether it told when to try again."""
    return Counter(
        " ".join(
            word
            for word in (
                str(one["status"] or ""),
                one["code"],
                "" if one["has_retry_after"] or not one["status"] else "without Retry-After",
            )
            if word
        )
        for one in requests
        if one["status"] not in (200, 201)
    )
