"""What a lost machine and a killed controller cost: three machines in network namespaces, asked without pause.

In: nothing but this machine, root and `ip netns`. Out: tables. Called by `python -m bench failover` and
`python -m bench controller`; nothing is a test. `SLICE_BENCH_RUNS` says how often machines are killed and cut off (50).
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from bench import restarting
from bench.report import Section, spread
from tests.many.three import ONE, Heard, Three, three_machines
from tests.waiting import until_async

RUNS = int(os.environ.get("SLICE_BENCH_RUNS", "50"))
CLIENTS = 4
_MODEL = "talk"


def losses() -> list[Section]:
    """Return the table of machines that are lost."""
    return [asyncio.run(_losses())]


def controllers() -> list[Section]:
    """Return the table of controllers that are killed."""
    return [asyncio.run(_controllers())]


@contextlib.asynccontextmanager
async def _talking() -> AsyncIterator[Three]:
    """Give three machines, one of which that joined has the only replica of a model."""
    async with three_machines() as three:
        await three.here.slice("node", "cordon", ONE)
        await three.here.slice("deploy", "fake", "--name", _MODEL)
        await three.until_ready(_MODEL)
        yield three


async def _losses() -> Section:
    async with _talking() as three:
        return _loss_section(
            {how: [await _lost(three, how, number) for number in range(share)] for how, share in _shares()}
        )


async def _controllers() -> Section:
    async with _talking() as three:
        return await _controller(three)


def _shares() -> list[tuple[str, int]]:
    return [("killed", RUNS - RUNS // 2), ("cut off", RUNS // 2)]


async def _lost(three: Three, how: str, number: int) -> tuple[float, float, float]:
    """Lose the machine of the only replica; return seconds to: no new request, replacement placed, answered again."""
    (replica,) = await three.until_ready(_MODEL)
    name, other = str(replica["node"]), {"two": "three", "three": "two"}[str(replica["node"])]
    async with three.asking(_MODEL, clients=CLIENTS) as heard:
        await _good(heard, time.monotonic())
        at = three.signal(name, signal.SIGKILL) if how == "killed" else three.cut(name)
        await _good(heard, at + 1.0)  # what was under way when it happened may still have been answered

        def is_placed(items: dict[str, list[str]]) -> bool:
            return any(one[0] == _MODEL and one[1] == other for one in items.values())

        suspect = heard.first(at, "nodes", lambda nodes: [name, "ready"] not in nodes.values())
        placed = heard.first(at, "replicas", is_placed)
        again = min(one["ended"] for one in heard.good(at + 1.0)) - at
    if how == "killed":
        await three.machines[name].slice("up")
    else:
        three.heal(name)
    await three.until_node(name, "ready")
    await three.until_ready(_MODEL)
    assert suspect is not None
    assert placed is not None
    print(f"{how} {number}: {suspect:.2f} {placed:.2f} {again:.2f}", flush=True)
    return suspect, placed, again


async def _good(heard: Heard, since: float) -> None:
    async def is_so() -> bool:
        return bool(heard.good(since))

    await until_async(is_so, 90.0, f"a good answer, not {heard.errors(since)[-2:]}")


def _loss_section(lost: dict[str, list[tuple[float, float, float]]]) -> Section:
    rows = []
    for how, runs in lost.items():
        for title, values, bar in zip(
            ("no new request to it", "replacement placed", "its model answers again"),
            zip(*runs, strict=True),
            ("8 s", "15 s", "15 s + load"),
            strict=True,
        ):
            rows.append((how, title, *spread(values, "s"), str(len(runs)), bar))
    return Section(
        title="A machine is lost",
        method="Three machines in network namespaces, mTLS between them; the only replica of a model (the fake engine, "
        f"which is ready in about 0.3 s) lies on the one that is lost. {CLIENTS} clients ask without pause. Killed: "
        "SIGKILL to every process in its namespace. Cut off: its end of the wire is set down, so that nobody is told. "
        "From that instant to: the node is not `ready` in the admin API (looked at every 50 ms; the door's table "
        "follows within a round trip), a replica on the other machine is in it, an answer is whole.",
        header=("how", "figure", "median", "minimum", "maximum", "runs", "bar (maximum)"),
        rows=tuple(rows),
    )


async def _controller(three: Three) -> Section:
    asker = restarting.Asker(three, nodes=len(three.machines))
    seen, waits, errors, asked = [], [], [], 0
    async with restarting.within(three.networks[ONE].name) as thread:
        for _ in range(max(3, RUNS // 5)):
            pids = {one["id"]: one["pid"] for one in await three.replicas(_MODEL)}
            async with three.asking(_MODEL, clients=CLIENTS) as heard:
                await _good(heard, time.monotonic())
                wait_s, restart = await _killed(three, asker, thread)
                waits.append(wait_s)
                seen.append(restart)
                await _good(heard, time.monotonic())
            errors += heard.errors()
            asked += len(heard.answers)
            assert {one["id"]: one["pid"] for one in await three.replicas(_MODEL)} == pids
    return _controller_section(seen, waits, errors, asked)


async def _killed(three: Three, asker: restarting.Asker, thread: Executor) -> tuple[float, restarting.Restart]:
    """Kill the controller; return the seconds until the next one began, and how that one came to act."""
    pid, at = three.part("controller"), restarting.boot_s()
    os.kill(pid, signal.SIGKILL)
    await until_async(lambda: _is_new(three, pid), 60.0, "another controller")
    began = restarting.began_s(three.here.data_dir / "parts" / "controller.json")
    restart = await asyncio.get_running_loop().run_in_executor(thread, asker.seen, began)
    print(f"killed: {began - at:.2f} {restart}", flush=True)
    return began - at, restart


def _controller_section(seen: list[restarting.Restart], waits: list[float], errors: list[str], asked: int) -> Section:
    said = f" ({', '.join(sorted(set(errors)))})" if errors else ""
    steps = zip(restarting.STEPS, zip(*(one.steps for one in seen), strict=True), strict=True)
    runs = str(len(seen))
    return Section(
        title="The controller is killed",
        method="SIGKILL to the controller, again and again, while the clients ask a model on another machine; its "
        "supervisor starts it again, after waits that double with every kill until it has served for 10 s. From the "
        "start of its process, as the kernel noted it, until the admin API answers and all three nodes are `ready` "
        "(asked over HTTP every 20 ms), with the steps on the way. No engine restarted: the replicas' pids are the "
        f"same. Requests that failed: {len(errors)} of {asked}{said}.",
        header=("figure", "median", "minimum", "maximum", "runs", "bar"),
        rows=(
            *((f"its start to: {step}", *spread(values, "s"), runs, "") for step, values in steps),
            ("its start to acting again", *spread([one.acting for one in seen], "s"), runs, "5 s"),
            ("kill to its start", *spread(waits, "s"), runs, ""),
        ),
    )


async def _is_new(three: Three, was: int) -> bool:
    return three.part("controller") != was
