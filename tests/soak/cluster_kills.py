"""kill -9 of any part of a cluster of three machines, round after round, under clients, and what each death cost.

One replica of a model on each machine, whose processes fork children in sessions of their own. A round kills the
victims of its number at once; a killed supervisor is started again by `slice up`, as its systemd unit does. All is well
when every part runs once, nobody is an orphan, no engine but a killed one was started anew, data planes route exactly
the present spawns, everything that was acknowledged is there, and answers come again.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from node_agent.dataplane.admin import Admin, AdminError
from node_agent.dataplane.configuration import ROUTES
from tests.many.three import ONE, Heard, Three
from tests.soak.machines import Doing, block_of, census, doings, doubles, orphans
from tests.soak.traffic import Written, failures, longest_gap_s, refusals, writing

JOINED = "joined machine"
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (ONE, ("supervisor",)),
    (ONE, ("controller",)),
    (ONE, ("postmaster",)),
    (ONE, ("backend",)),
    (ONE, ("node agent",)),
    (ONE, ("shim",)),
    (ONE, ("engine",)),
    (ONE, ("door shim",)),
    (ONE, ("door host",)),
    (ONE, ("gcs",)),
    (ONE, ("raylet",)),
    (ONE, ("Serve controller",)),
    (ONE, ("Serve replica",)),
    (ONE, ("Serve proxy",)),
    (ONE, ("HAProxy manager",)),
    (ONE, ("door HAProxy",)),
    (ONE, ("supervisor", "controller")),
    (ONE, ("supervisor", "postmaster")),
    (ONE, ("supervisor", "gcs")),
    (ONE, ("supervisor", "door shim")),
    (ONE, ("supervisor", "controller", "postmaster", "node agent", "door shim")),
    (JOINED, ("supervisor",)),
    (JOINED, ("node agent",)),
    (JOINED, ("shim",)),
    (JOINED, ("engine",)),
    (JOINED, ("plane HAProxy",)),
    (JOINED, ("plane shim",)),
    (JOINED, ("supervisor", "node agent")),
    (JOINED, ("node agent", "shim", "plane shim")),
)
"""Where, and whom at once."""
ORPHANS_S = 60.0
_WELL_S = 120.0
_CLIENTS = 4
_PAUSE_S = 0.25  # of a client whose request failed: a refusal costs nothing, and would be asked for all day


@dataclass(frozen=True, kw_only=True)
class ClusterRound:
    """What one round cost; seconds from the kill, `failed` by error, `trouble` says what was not well in time."""

    number: int
    where: str
    victims: str
    orphans_gone_s: float | None = None
    well_s: float | None = None
    longest_gap_s: float | None = None
    answers: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    writes: int = 0
    writes_refused: dict[str, int] = field(default_factory=dict)
    trouble: str = ""


def kind_of(seed: str, number: int) -> tuple[str, tuple[str, ...]]:
    """Return whom round `number` kills and where: each block of rounds has every kind once, in an order of its own."""
    block = list(KINDS)
    random.Random(f"{seed}:{number // len(block)}").shuffle(block)
    return block[number % len(block)]


class ClusterLoop:
    """The loop over one cluster, which has a replica on each machine."""

    def __init__(self, three: Three, seed: str) -> None:
        self._three = three
        self._seed = seed
        self._model = ""
        self._doubles: list[tuple[str, str]] = []

    async def deploy(self, name: str) -> None:
        """Serve a model on every machine, in place of the one before it: a crash loop is counted per replica."""
        if self._model:
            await self._three.here.slice("undeploy", self._model)
        settings = ("--set", "fork_tree=3", "--set", "token_delay_ms=25")
        await self._three.here.slice("deploy", "fake", "--name", name, "--replicas", "3", *settings)
        found = await self._three.until_ready(name, 3)
        assert sorted(one["node"] for one in found) == sorted(self._three.machines)
        self._model = name

    async def round(self, number: int) -> ClusterRound:
        """Kill the victims of `number` and tell what it cost; what is not well in time is told as its trouble."""
        where, victims = kind_of(self._seed, number)
        return await self.kill(number, where, victims)

    async def kill(self, number: int, where: str, victims: tuple[str, ...]) -> ClusterRound:
        """Kill `victims` on a machine at once and tell what it cost."""
        random_one = random.Random(f"{self._seed}:{number}")
        name = ONE if where == ONE else random_one.choice(sorted(set(self._three.machines) - {ONE}))
        told: dict[str, Any] = {"number": number, "where": where if where == JOINED else "controller's machine"}
        told["victims"] = " + ".join(victims)
        async with self._asking() as (heard, written):
            before = await self._replicas(written)
            parts = {machine: census(doings(self._three, machine)) for machine in self._three.machines}
            chosen = [self._victim(name, role, random_one) for role in victims]
            since = time.monotonic()
            for victim in chosen:
                os.kill(victim.mark.pid, signal.SIGKILL)
            try:
                if "supervisor" in victims:
                    await self._three.machines[name].slice("up", timeout_s=_WELL_S)
                is_restarted = bool({"shim", "engine"} & set(victims))
                expected = {
                    one["id"]: (one["incarnation"] + 1, None)
                    if is_restarted and one["node"] == name
                    else (one["incarnation"], one["pid"])
                    for one in before
                }
                told["orphans_gone_s"] = await self._orphans_gone(since)
                await self._well(written, parts, expected)
                await _answered(heard, time.monotonic())
                told["well_s"] = time.monotonic() - since
                await self._kept(written)
            except (AssertionError, TimeoutError) as trouble:
                told["trouble"] = f"{type(trouble).__name__}: {trouble}"[:2000]
            ended = time.monotonic()
            told |= _costs(heard, written, since, ended)
        return ClusterRound(**told)

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[tuple[Heard, Written]]:
        async with (
            self._three.asking(self._model, clients=_CLIENTS, pause_s=_PAUSE_S) as heard,
            writing(self._three) as written,
        ):
            await _answered(heard, 0.0)
            yield heard, written

    def _victim(self, name: str, role: str, random_one: random.Random) -> Doing:
        found = [doing for doing in doings(self._three, name) if doing.role == role]
        assert found, f"no {role} runs on {name}"
        return random_one.choice(found)

    async def _replicas(self, written: Written) -> list[dict[str, Any]]:
        """Look at the replicas anew and return them."""
        since, found = time.monotonic(), []

        async def is_so() -> bool:
            found[:] = [written.read("replicas", since)]
            return found[0] is not None

        await _until(is_so, 30.0, lambda: f"nobody tells of replicas: {written.of('replicas')[-1:]}")
        return [one for one in found[0] if one["deployment"] == self._model]

    async def _orphans_gone(self, since: float) -> float:
        left: list[str] = []

        async def is_so() -> bool:
            self._look_for_doubles()
            left[:] = [f"{name}: {one}" for name in self._three.machines for one in orphans(self._three, name)]
            return not left

        await _until(is_so, ORPHANS_S - (time.monotonic() - since), lambda: f"orphans are left: {left}")
        return time.monotonic() - since

    def _look_for_doubles(self) -> None:
        for name in self._three.machines:
            found = doubles(doings(self._three, name))
            assert not found, f"spawned twice on {name}: {found}"

    async def _well(self, written: Written, parts: dict[str, Any], expected: dict[str, tuple[int, int | None]]) -> None:
        """Wait until every part runs once, and nodes, replicas and routes are what they should be."""
        wrong = [""]

        async def is_so() -> bool:
            self._look_for_doubles()
            wrong[0] = self._parts_amiss(parts)
            if not wrong[0]:
                wrong[0] = await self._cluster_amiss(written, expected)
            return not wrong[0]

        await _until(is_so, _WELL_S, lambda: wrong[0])

    def _parts_amiss(self, parts: dict[str, Any]) -> str:
        for name in self._three.machines:
            now = census(doings(self._three, name))
            if now != parts[name]:
                return f"{name} runs {dict(now - parts[name])} too much and {dict(parts[name] - now)} too little"
        left = [one for name in self._three.machines for one in orphans(self._three, name)]
        return f"orphans: {left}" if left else ""

    async def _cluster_amiss(self, written: Written, expected: dict[str, tuple[int, int | None]]) -> str:
        found = await self._replicas(written)
        nodes = {one["name"]: one["state"] for one in written.read("nodes", 0.0) or ()}
        if nodes != dict.fromkeys(self._three.machines, "ready"):
            return f"nodes are {nodes}"
        for one in found:
            incarnation, pid = expected.get(one["id"], (0, None))
            assert one["incarnation"] <= incarnation, f"{one['id']} was started more often than it was killed: {one}"
            assert pid in (None, one["pid"]) or one["state"] != "ready", f"{one['id']} is another process: {one}"
        now = {one["id"]: (one["state"], one["incarnation"]) for one in found}
        wanted = {one: ("ready", incarnation) for one, (incarnation, _) in expected.items()}
        return await self._routes_amiss(found) if now == wanted else f"replicas are {now}, not {wanted}"

    async def _routes_amiss(self, replicas: list[dict[str, Any]]) -> str:
        for name in self._three.machines:
            wanted = {f"{one['id']}/{one['incarnation']}" for one in replicas if one["node"] == name}
            found: list[set[str]] = []
            for socket in (block_of(self._three, name).runtime_dir / "shims").glob("haproxy-*.sock"):
                with contextlib.suppress(AdminError):
                    found.append({key for key, _ in await Admin(socket).map_lines(ROUTES)})
            if found != [wanted]:
                return f"the data plane of {name} routes {found}, not {wanted}"
        return ""

    async def _kept(self, written: Written) -> None:
        acknowledged = written.acknowledged()
        there = {key["name"] for key in (await self._three.here.json("key", "list"))["items"]}
        assert acknowledged <= there, f"acknowledged and lost: {sorted(acknowledged - there)[:5]}"


def _costs(heard: Heard, written: Written, since: float, ended: float) -> dict[str, Any]:
    writes = written.of("keys", since=since)
    return {
        "longest_gap_s": longest_gap_s(heard, since, ended),
        "answers": sum(one["ended"] >= since for one in heard.answers),
        "failed": dict(failures(heard, since)),
        "writes": len(writes),
        "writes_refused": dict(refusals(writes)),
    }


async def _answered(heard: Heard, since: float, count: int = 8) -> None:
    async def is_so() -> bool:
        return len(heard.good(since)) >= count

    await _until(is_so, 90.0, lambda: f"no {count} good answers: {heard.errors(since)[-3:]}")


async def _until(condition: Any, timeout_s: float, what: Any) -> None:
    """Wait until the awaited `condition` holds; `what` then says why it does not."""
    end = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < end, f"after {timeout_s:.0f} s: {what()}"
        await asyncio.sleep(0.1)
