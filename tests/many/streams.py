"""Streams held open at the door of three machines, and how each of them ended."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.infra import cluster
from tests.many.three import Three
from tests.waiting import until_async

_STREAMER = Path(__file__).with_name("streamer.py")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Clients of one model, each of which holds one stream of `words` tokens at a time; see streamer.py."""

    model: str
    clients: int
    words: int
    is_exact: bool = True
    rest_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """One stream, as its client saw it; instants are this machine's monotonic clock. `replica` is "" before a head."""

    number: int
    model: str
    replica: str
    begun: float
    at: float
    outcome: str
    detail: str


@dataclass
class Streams:
    """What the clients have said so far."""

    opened: dict[int, dict[str, Any]] = field(default_factory=dict)
    ended: dict[int, Ended] = field(default_factory=dict)

    def take(self, said: dict[str, Any]) -> None:
        """Take in a line of the streamer's."""
        event = said.pop("event")
        if event == "open":
            self.opened[said["number"]] = said
        else:
            self.ended[said["number"]] = Ended(**said)

    def open_at(self, at: float) -> dict[int, str]:
        """Return the streams that had said a first word by `at` and had not ended, with their replicas."""
        return {
            number: one["replica"]
            for number, one in self.opened.items()
            if one["at"] <= at and (number not in self.ended or self.ended[number].at > at)
        }

    def whole(self, since: float, model: str) -> int:
        """Return how many streams of a model began after `since` and were whole."""
        return sum(one.outcome == "whole" and one.begun >= since and one.model == model for one in self.ended.values())

    async def until_open(self, count: int, deadline_s: float = 60.0) -> None:
        """Wait until `count` streams are open at once."""

        async def is_so() -> bool:
            return len(self.opened.keys() - self.ended.keys()) >= count

        await until_async(is_so, deadline_s, f"{count} open streams")

    async def until_ended(self, numbers: Sequence[int], deadline_s: float) -> None:
        """Wait until all of these have ended."""

        async def is_so() -> bool:
            return not set(numbers) - self.ended.keys()

        await until_async(is_so, deadline_s, f"the end of {len(numbers)} streams")

    async def until_whole(self, since: float, models: Sequence[str], deadline_s: float = 90.0) -> None:
        """Wait until a stream of each model that began after `since` was whole."""

        async def is_so() -> bool:
            return all(self.whole(since, model) for model in models)

        await until_async(is_so, deadline_s, f"whole streams of {models}")


@contextlib.asynccontextmanager
async def streaming(three: Three, plans: Sequence[Plan]) -> AsyncIterator[Streams]:
    """Hold streams open for the length of the block; those that are open at its end go on to theirs."""
    block = cluster.load(three.here.data_dir)
    assert block is not None
    settings = {
        "door": block.openai_base_url,
        "key": block.secret_file("api_key").read_text().strip(),
        "plans": [asdict(plan) for plan in plans],
    }
    streams = Streams()
    async with three.beside(_STREAMER, settings, streams.take):
        yield streams


@dataclass(frozen=True, kw_only=True)
class Toll:
    """What one trouble cost: streams by what they were when it came, and how they ended."""

    how: str
    struck: Counter[str]
    """Open on the machine in trouble when it came."""
    spared: Counter[str]
    """Open on other machines then."""
    between: Counter[str]
    """Asked for since, before the trouble was seen and nobody was sent to that machine any more."""
    after: Counter[str]
    """Asked for since it was seen."""
    told_within_s: float | None
    """The longest time from the trouble to the end of a stream that it struck."""

    @property
    def silent(self) -> int:
        """How many streams of all broke off in silence, or claimed to be whole and were not."""
        return sum(found[word] for found in (self.struck, self.spared, self.between, self.after) for word in _SILENT)

    def cells(self) -> tuple[str, ...]:
        """Return it as cells of a table."""
        within = "" if self.told_within_s is None else f"{self.told_within_s:.1f} s"
        counts = tuple(_counted(found) for found in (self.struck, self.spared, self.between, self.after))
        return (self.how, counts[0], within, *counts[1:], str(self.silent))


_SILENT = ("cut", "wrong")
HEADER = ("trouble", "open on that machine", "longest to its end", "open elsewhere", "asked before it was seen",
          "asked since", "silently cut")  # fmt: skip


def toll(how: str, streams: Streams, on: frozenset[str], at: float, seen_at: float) -> Toll:
    """Count all streams; `on` are the replicas on the machine in trouble, which came at `at` and was seen at `seen_at`.

    A stream without a first word at `at` counts as asked since: nobody knows where it was.
    """
    open_then = streams.open_at(at)
    struck = [streams.ended[number] for number, replica in open_then.items() if replica in on]
    spared = [streams.ended[number] for number, replica in open_then.items() if replica not in on]
    others = [one for one in streams.ended.values() if one.number not in open_then and one.at > at]
    told = [one.at - at for one in struck if one.outcome != "whole"]
    return Toll(
        how=how,
        struck=_outcomes(struck),
        spared=_outcomes(spared),
        between=_outcomes([one for one in others if one.begun < seen_at]),
        after=_outcomes([one for one in others if one.begun >= seen_at]),
        told_within_s=max(told, default=None),
    )


def _outcomes(ended: Sequence[Ended]) -> Counter[str]:
    return Counter(one.outcome for one in ended)


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(found.items())) or "none"
