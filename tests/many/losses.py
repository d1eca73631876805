"""Fifty streams of two engines on three machines, and the troubles that one of these machines can have.

Used by the test of that promise and by `python -m bench streams`.
"""

import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.ggufs import write_random_llama
from tests.many.streams import Plan, Streams, Toll, streaming, toll
from tests.many.three import ONE, Three, three_machines
from tests.waiting import until_async

PACED, REAL = "paced", "random"
STREAMS = 50
IDLE_S = 20.0
"""`door_idle_timeout_s` of these clusters: a stream that says nothing for so long is ended with an error event."""
SETTINGS = f"door_idle_timeout_s = {IDLE_S}\n"
_TOKEN_MS, _WORDS = 250, 40
_PLANS = (
    Plan(model=PACED, clients=STREAMS, words=_WORDS),
    Plan(model=REAL, clients=4, words=400, is_exact=False, rest_s=1.0),
)
END_S = IDLE_S + 15.0
"""When a stream on a machine in trouble must have ended, with room for a busy machine."""


@contextlib.asynccontextmanager
async def two_engines(directory: Path) -> AsyncIterator["Losing"]:
    """Give three machines, two of which that joined serve a paced fake engine and a real llama.cpp each."""
    async with three_machines(settings=SETTINGS) as three:
        file = write_random_llama(
            directory / "random.gguf", seed=3, layers=8, embedding=256, heads=8, feed_forward=1024, context=1024
        )
        await three.here.slice("pull", REAL, "--source", f"file:{file}")
        await three.here.slice("node", "cordon", ONE)
        paced = ("--set", f"token_delay_ms={_TOKEN_MS}")
        await three.here.slice("deploy", "fake", "--name", PACED, "--replicas", "2", *paced)
        small = ("--set", "context=1024", "--set", "slots=4", "--set", "threads=1")
        await three.here.slice("deploy", REAL, "--replicas", "2", *small)
        losing = Losing(three)
        await losing.spread()
        yield losing


@dataclass(frozen=True)
class Losing:
    """Brings machine `two` into trouble under streams."""

    three: Three

    async def spread(self) -> None:
        """Return when each model has a ready replica on each of the two machines that joined."""
        for model in (PACED, REAL):
            found = await self.three.until_ready(model, 2, deadline_s=180.0)
            for name in {"two", "three"} - {one["node"] for one in found}:
                await self.three.here.slice("move", found[0]["id"], "--to", name, "--wait", timeout_s=120)
            await self.three.until_ready(model, 2)

    async def on_two(self) -> frozenset[str]:
        """Return the replicas on machine `two`."""
        found = [one for model in (PACED, REAL) for one in await self.three.replicas(model)]
        return frozenset(one["id"] for one in found if one["node"] == "two")

    async def meet(self, how: str) -> Toll:
        """Let the trouble `how` come and go under streams, and return what it cost."""
        await self.spread()
        on = await self.on_two()
        async with streaming(self.three, _PLANS) as streams:
            await streams.until_open(STREAMS)
            await streams.until_whole(0.0, (PACED, REAL))
            await streams.until_open(STREAMS)
            at, seen_at = await TROUBLES[how](self, streams, on)
        return toll(how, streams, on, at, seen_at)

    async def _lost(self, at: float, streams: Streams, on: frozenset[str]) -> float:
        """Wait for what follows when a machine is gone; return when the cluster knew it."""
        seen_at = time.monotonic()
        if (await self.three.nodes())["two"]["state"] == "ready":
            seen_at = await self._until_unready()
        struck = [number for number, replica in streams.open_at(at).items() if replica in on]
        await streams.until_ended(struck, END_S)
        await self.three.until_node("two", "lost")
        await self._replaced(on)
        await streams.until_whole(time.monotonic(), (PACED, REAL))
        return seen_at

    async def _until_unready(self) -> float:
        async def is_so() -> bool:
            return (await self.three.nodes())["two"]["state"] != "ready"

        await until_async(is_so, 60.0, "two to be suspect")
        return time.monotonic()

    async def _replaced(self, on: frozenset[str]) -> None:
        for model in (PACED, REAL):

            async def is_so(model: str = model) -> bool:
                found = await self.three.replicas(model)
                return sum(one["state"] == "ready" and one["id"] not in on for one in found) == 2

            await until_async(is_so, 120.0, f"a replacement for {model}")

    async def _back(self, streams: Streams) -> None:
        await self.three.until_node("two", "ready", 90.0)
        for model in (PACED, REAL):
            await self.three.until_ready(model, 2, deadline_s=120.0)
        await streams.until_whole(time.monotonic(), (PACED, REAL))

    async def killed(self, streams: Streams, on: frozenset[str]) -> tuple[float, float]:
        """Kill every process of the machine."""
        at = self.three.signal("two", signal.SIGKILL)
        seen_at = await self._lost(at, streams, on)
        await self.three.machines["two"].slice("up")
        await self._back(streams)
        return at, seen_at

    async def cut(self, streams: Streams, on: frozenset[str]) -> tuple[float, float]:
        """Pull its plug out of the network."""
        at = self.three.cut("two")
        seen_at = await self._lost(at, streams, on)
        self.three.heal("two")
        await self._back(streams)
        return at, seen_at

    async def suspended(self, streams: Streams, on: frozenset[str]) -> tuple[float, float]:
        """Stop every process of the machine."""
        at = self.three.signal("two", signal.SIGSTOP)
        seen_at = await self._lost(at, streams, on)
        self.three.signal("two", signal.SIGCONT)
        await self._back(streams)
        return at, seen_at

    async def rebooted(self, streams: Streams, on: frozenset[str]) -> tuple[float, float]:
        """Cut its power and start it at once."""
        at = await self.three.reboot("two")
        await self._back(streams)
        return at, time.monotonic()

    async def drained(self, streams: Streams, on: frozenset[str]) -> tuple[float, float]:
        """Drain it on purpose."""
        at = time.monotonic()
        await self.three.here.slice("node", "drain", "two", "--wait", timeout_s=120)
        assert not await self.on_two()
        await streams.until_whole(time.monotonic(), (PACED, REAL))
        await self.three.here.slice("node", "uncordon", "two")
        return at, at

    async def moved(self, streams: Streams, on: frozenset[str]) -> tuple[float, float]:
        """Move its replicas to another machine."""
        at = time.monotonic()
        for replica in on:
            await self.three.here.slice("move", replica, "--to", "three", "--wait", timeout_s=120)
        assert not await self.on_two()
        await streams.until_whole(time.monotonic(), (PACED, REAL))
        return at, at


Trouble = Callable[[Losing, Streams, frozenset[str]], Awaitable[tuple[float, float]]]
TROUBLES: dict[str, Trouble] = {
    "killed": Losing.killed,
    "cut": Losing.cut,
    "suspended": Losing.suspended,
    "rebooted": Losing.rebooted,
    "drained": Losing.drained,
    "moved": Losing.moved,
}
ON_PURPOSE = frozenset({"drained", "moved"})
