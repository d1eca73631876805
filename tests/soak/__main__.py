"""`make soak`: the long loops in full. A round that is done is a line in .make/soak/, so that the next run goes on.

python -m tests.soak [node] [cluster] [outage] [--rounds 100] [--seconds 300] [--seed NAME] [--report]

node: kill -9 of any part of one node. cluster: of any part of three machines, under clients. outage: PostgreSQL gone
for `--seconds`, in every form. All three by default. Interrupt a run whenever you like; the same command goes on.
`--report` writes the results of what is done so far and does no more.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import report
from tests.many.three import Three, three_machines
from tests.node_agent import controllers
from tests.node_agent.nodes import Node
from tests.soak import outage
from tests.soak.cluster_kills import KINDS, ClusterLoop, ClusterRound
from tests.soak.node_kills import KillLoop, Round, Watching
from tests.soak.outage import FORMS, Outage
from tests.soak.rounds import Rounds
from tests.soak.strays import strays
from tests.soak.tables import cluster_section, node_section, noticed, outage_section

STATE = Path(".make/soak")
Told = tuple[report.Section, list[str]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asked for."""

    rounds: int
    seconds: float
    seed: str
    is_report: bool = False

    def file(self, item: str) -> Path:
        """Return where the rounds of `item` are kept."""
        return STATE / f"{item}-{self.seed}.jsonl"


async def node(wanted: Wanted) -> Told:
    """Do what is missing of the rounds on one node.

    Raises:
        AssertionError: something of the node survived its end. TimeoutError: a round was not well in time.
    """
    kept = Rounds(wanted.file("node"), Round)
    found = kept.done()[: wanted.rounds]
    if len(found) < wanted.rounds and not wanted.is_report:
        with tempfile.TemporaryDirectory() as directory:
            machine = Node(Path(directory))
            try:
                async with controllers.serving(machine.control, Watching()) as controller:
                    loop = KillLoop(machine, controller, wanted.seed)
                    await loop.begin()
                    for number in range(len(found), wanted.rounds):
                        found.append(await loop.round(number))
                        kept.keep(found)
                        _say(f"{number + 1}/{wanted.rounds} {found[-1].victims}: {found[-1].orphans_gone_s:.2f} s")
            finally:
                await machine.close()
            assert not (left := strays(machine.data_dir)), f"these survived the end of their node: {left}"
    return node_section(found)


async def cluster(wanted: Wanted) -> Told:
    """Do what is missing of the rounds on three machines; after one that was not well, on three new ones."""
    kept = Rounds(wanted.file("cluster"), ClusterRound)
    found = kept.done()[: wanted.rounds]
    while len(found) < wanted.rounds and not wanted.is_report:
        async with three_machines() as three:
            loop = ClusterLoop(three, wanted.seed)
            for number in range(len(found), wanted.rounds):
                if number == len(found) or number % len(KINDS) == 0:
                    await loop.deploy(f"talk-{number}")
                found.append(await loop.round(number))
                kept.keep(found)
                one = found[-1]
                _say(f"{number + 1}/{wanted.rounds} {one.where}: {one.victims}: {one.trouble or f'{one.well_s:.1f} s'}")
                if one.trouble:
                    (STATE / f"trouble-{wanted.seed}-{number}.log").write_text(_logs(three))
                    break
    return cluster_section(found)


async def outages(wanted: Wanted) -> Told:
    """Do what is missing of the outages, one form after the other."""
    kept = Rounds(wanted.file("outage"), Outage)
    found = kept.done()
    if len(found) < len(FORMS) and not wanted.is_report:
        async with three_machines() as three:
            await outage.deploy(three)
            for form in FORMS[len(found) :]:
                _say(f"PostgreSQL is {form} for {wanted.seconds:.0f} s")
                found.append(await outage.outage(three, form, wanted.seconds))
                kept.keep(found)
                _say(f"{form}: {noticed(found[-1]) or 'nobody noticed'}")
    return outage_section(found)


ITEMS: dict[str, Callable[[Wanted], Coroutine[Any, Any, Told]]] = {"node": node, "cluster": cluster, "outage": outages}
_NAMES = {"node": "soak-kills", "cluster": "soak-cluster", "outage": "soak-outage"}


def _logs(three: Three) -> str:
    return "\n".join(f"=== {name}\n{machine.logs()}" for name, machine in three.machines.items())


def _say(text: str) -> None:
    print(text, flush=True)


async def _done(item: str, wanted: Wanted) -> Told:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):  # what was started is ended all the same
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await ITEMS[item](wanted)


def main(arguments: list[str]) -> int:
    """Run the loops, write their results and return 1 when a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("items", nargs="*", choices=[[], *ITEMS])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", default="soak")
    parser.add_argument("--report", action="store_true")
    chosen = parser.parse_args(arguments)
    wanted = Wanted(rounds=chosen.rounds, seconds=chosen.seconds, seed=chosen.seed, is_report=chosen.report)
    missed: list[str] = []
    for item in chosen.items or ITEMS:
        try:
            missed += _written(item, wanted)
        except (asyncio.CancelledError, KeyboardInterrupt):
            print(f"interrupted in `{item}`; the same command goes on there", file=sys.stderr)
            return 1
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def _written(item: str, wanted: Wanted) -> list[str]:
    table, missed = asyncio.run(_done(item, wanted))
    more = f"--seconds {wanted.seconds:.0f}" if item == "outage" else f"--rounds {wanted.rounds}"
    command = f"`make soak` (`python -m tests.soak {item} {more} --seed {wanted.seed}`)"
    _say(report.write(f"{datetime.now(UTC):%Y-%m-%d}-{_NAMES[item]}", [table], command).read_text())
    if not wanted.is_report:
        wanted.file(item).unlink()  # whole: the next run begins anew
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
