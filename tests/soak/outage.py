"""PostgreSQL gone for minutes while clients ask a model on two machines: nobody may notice but who writes.

Two forms: `frozen`, every process of the server is stopped and the sockets stay open; `withheld`, the server is killed
and cannot start, because its configuration has a line that it refuses.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.infra import processes
from tests.many.three import ONE, Heard, Three
from tests.soak.machines import block_of, doings, orphans
from tests.soak.traffic import Written, failures, longest_gap_s, refusals, writing
from tests.waiting import until_async

FORMS = ("frozen", "withheld")
_MODEL = "lasting"
_AGAIN_S = 90.0
_REFUSED_LINE = "slice_soak_refuses_to_start = 'until this line is gone\n"  # an open quote: no setting at all


@dataclass(frozen=True, kw_only=True)
class Outage:
    """What was seen: `states` are those of any node during it and after it, `again_s` is from its end to a write."""

    form: str
    seconds: float
    answers: int
    failed: dict[str, int]
    longest_gap_s: float
    writes: int
    writes_refused: dict[str, int]
    slowest_refusal_s: float
    reads: int
    reads_refused: dict[str, int]
    states: list[str]
    again_s: float
    ready_s: float
    trouble: str = ""
    restarted: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _frozen(three: Three) -> Iterator[None]:
    (postmaster,) = [one.mark.pid for one in doings(three, ONE) if one.role == "postmaster"]
    stopped: set[processes.ProcessMark] = set()
    while more := set(processes.family(frozenset({postmaster}))) - stopped:  # what was forked meanwhile, too
        for one in more:
            processes.send_signal(one, signal.SIGSTOP)
        stopped |= more
    try:
        yield
    finally:
        for one in stopped:
            processes.send_signal(one, signal.SIGCONT)


@contextlib.contextmanager
def _withheld(three: Three) -> Iterator[None]:
    file = block_of(three, ONE).data_dir / "postgres" / "postgresql.auto.conf"
    before = file.read_text()
    _rewritten(file, before + _REFUSED_LINE)
    try:
        (postmaster,) = [one.mark.pid for one in doings(three, ONE) if one.role == "postmaster"]
        os.kill(postmaster, signal.SIGKILL)
        yield
    finally:
        _rewritten(file, before)


def _rewritten(file: Path, text: str) -> None:
    """Change the text of a file in place: its owner, which may be another user, stays."""
    file.write_text(text)


async def deploy(three: Three) -> None:
    """Serve the model that is asked on two machines that joined."""
    await three.here.slice("node", "cordon", ONE)
    await three.here.slice("deploy", "fake", "--name", _MODEL, "--replicas", "2", "--set", "token_delay_ms=25")
    found = await three.until_ready(_MODEL, 2)
    assert sorted(one["node"] for one in found) == ["three", "two"]
    await three.here.slice("node", "uncordon", ONE)


async def gone(three: Three) -> None:
    """Serve it no more."""
    await three.here.slice("undeploy", _MODEL)


async def outage(three: Three, form: str, seconds: float) -> Outage:
    """Take PostgreSQL away for `seconds`, give it back, and tell what was seen until all is well again.

    Raises:
        AssertionError: it was not well within 90 s.
    """
    before = {one["id"]: (one["incarnation"], one["pid"]) for one in await three.replicas(_MODEL)}
    async with three.asking(_MODEL, clients=4, pause_s=0.25) as heard, writing(three) as written:
        await until_async(lambda: _is(len(heard.good(0.0)) >= 8 and written.acknowledged()), 60.0, "the first answers")
        since = time.monotonic()
        with _frozen(three) if form == "frozen" else _withheld(three):
            await asyncio.sleep(seconds)
        ended = time.monotonic()
        again = await _first(written, "keys", ended, 201)
        ready = await _ready(written, ended, len(three.machines))
        # A node that was held against its silence would be lost about now.
        await asyncio.sleep(15.0 if seconds >= 60.0 else 0.0)
        acknowledged = written.acknowledged()  # before the list is asked for: the writer goes on
        there = {key["name"] for key in (await three.here.json("key", "list"))["items"]}
        lost_keys = acknowledged - there
        after = {one["id"]: (one["incarnation"], one["pid"]) for one in await three.replicas(_MODEL)}
        with contextlib.suppress(AssertionError):  # those who are left then are told below
            await until_async(lambda: _is(not orphans(three, ONE)), 60.0)
        left = orphans(three, ONE)
        troubles = [f"acknowledged and lost: {sorted(lost_keys)[:5]}"] if lost_keys else []
        troubles += [f"orphans: {left}"] if left else []
        return Outage(
            form=form,
            seconds=ended - since,
            restarted=[one for one in {*before, *after} if before.get(one) != after.get(one)],
            again_s=again - ended,
            ready_s=ready - ended,
            trouble="; ".join(troubles),
            **_seen(heard, written, since, ended),
        )


def _seen(heard: Heard, written: Written, since: float, ended: float) -> dict[str, object]:
    keys = [one for one in written.of("keys", since=since) if one["begun"] < ended]
    reads = [one for one in written.of("nodes", "replicas", since=since) if one["begun"] < ended]
    refused = [one["ended"] - one["begun"] for one in keys if one["status"] != 201]
    nodes = [one for one in written.of("nodes", since=since) if one["status"] == 200]
    return {
        "answers": sum(one["ended"] >= since for one in heard.answers),
        "failed": dict(failures(heard, since)),
        "longest_gap_s": longest_gap_s(heard, since, time.monotonic()),
        "writes": len(keys),
        "writes_refused": dict(refusals(keys)),
        "slowest_refusal_s": max(refused, default=0.0),
        "reads": len(reads),
        "reads_refused": dict(refusals(reads)),
        "states": sorted({item["state"] for one in nodes for item in one["items"]}),
    }


async def _first(written: Written, what: str, since: float, status: int) -> float:
    """Return when the first request of a kind that began after `since` ended so."""
    found: list[float] = []

    async def is_so() -> bool:
        requests = [one for one in written.of(what, since=since) if one["begun"] >= since]
        found[:] = [one["ended"] for one in requests if one["status"] == status]
        return bool(found)

    await until_async(is_so, _AGAIN_S, f"{what} to be answered {status}")
    return found[0]


async def _ready(written: Written, since: float, count: int) -> float:
    """Return when all nodes and both replicas were first seen ready."""

    async def is_so() -> bool:
        nodes, replicas = written.read("nodes", since) or [], written.read("replicas", since) or []
        states = [one["state"] for one in nodes]
        serving = [one["state"] for one in replicas if one["deployment"] == _MODEL]
        return states == ["ready"] * count and serving == ["ready"] * 2

    await until_async(is_so, _AGAIN_S, "all to be ready")
    return time.monotonic()


async def _is(value: object) -> bool:
    return bool(value)
