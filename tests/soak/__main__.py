"""`make soak`: the kill loop in full. A round that is done is a line in .make/soak/, so that the next run goes on.

python -m tests.soak [--rounds 100] [--seed NAME]
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench import report
from tests.node_agent import controllers
from tests.node_agent.nodes import Node
from tests.soak.kills import ORPHANS_S, OUT_OF_ROUTING_S, RESTART_S, KillLoop, Round, Watching
from tests.soak.strays import strays

STATE = Path(".make/soak")
BARS = {
    "out_of_routing_s": ("engine or shim killed: first report in which it is not ready", OUT_OF_ROUTING_S),
    "restart_s": ("engine or shim killed: first report of the next incarnation, which runs then", RESTART_S),
    "orphans_gone_s": ("any part killed: nothing of the old tree and no stray alive", ORPHANS_S),
    "served_again_s": ("engine or shim killed, a killed node agent's own start included: ready again", None),
}


def done(file: Path) -> list[Round]:
    """Return the rounds that earlier runs did; a line that was cut off in the middle is none."""
    rounds = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            rounds.append(Round(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return rounds


async def run(file: Path, rounds: int, seed: str) -> list[Round]:
    """Do what is missing of `rounds` and return all of them.

    Raises:
        AssertionError: something of the node survived its end. TimeoutError: a round was not well in time.
    """
    found = done(file)
    if len(found) >= rounds:
        return found[:rounds]
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # the node is ended all the same
    with tempfile.TemporaryDirectory() as directory:
        node = Node(Path(directory))
        try:
            async with controllers.serving(node.control, Watching()) as controller:
                loop = KillLoop(node, controller, seed)
                await loop.begin()
                for number in range(len(found), rounds):
                    found.append(await loop.round(number))
                    file.write_text("".join(json.dumps(asdict(one)) + "\n" for one in found))
                    print(f"{number + 1}/{rounds} {found[-1].victims}: {found[-1].orphans_gone_s:.2f} s", flush=True)
        finally:
            await node.close()
        assert not (left := strays(node.data_dir)), f"these survived the end of their node: {left}"
    return found


def section(rounds: list[Round]) -> tuple[report.Section, list[str]]:
    """Return the table of `rounds` and which bars were missed."""
    rows, missed = [], []
    for name, (title, bar) in BARS.items():
        values = [value for one in rounds if (value := getattr(one, name)) is not None]
        if not values:
            continue
        cells = report.spread(values, "s")
        rows.append(
            (title, str(len(values)), *cells, f"{report.percentile(values, 0.95):.2f} s", f"{bar:g} s" if bar else "")
        )
        if bar is not None and max(values) > bar:
            missed.append(f"{title}: {max(values):.2f} s, the bar is {bar:g} s")
    by_victims = ", ".join(
        f"{victims} {sum(one.victims == victims for one in rounds)}"
        for victims in sorted({one.victims for one in rounds})
    )
    method = (
        "One node agent, one fake engine with three children in sessions of their own under other names, a controller "
        "on a unix socket that notes when it hears what. Each round is a kill -9 of its victims at once and lasts "
        "until all is well again; the loop starts a killed node agent anew. The pause before a restart is the "
        "product's first one (1 s -+ 20 %) each time. Seconds from the kill; the old tree and strays are looked for "
        "once the replica is ready again, so that theirs is an upper bound. "
        f"Rounds by victims: {by_victims}."
    )
    header = ("figure", "rounds", "median", "minimum", "maximum", "p95", "bar (maximum)")
    return report.Section(
        title=f"kill -9, {len(rounds)} rounds", method=method, header=header, rows=tuple(rows)
    ), missed


def main(arguments: list[str]) -> int:
    """Run the loop, write the results and return 1 when a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", default="soak")
    chosen = parser.parse_args(arguments)
    STATE.mkdir(parents=True, exist_ok=True)
    file = STATE / f"kills-{chosen.seed}.jsonl"
    try:
        rounds = asyncio.run(run(file, chosen.rounds, chosen.seed))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print(f"interrupted after {len(done(file))} rounds; the next run goes on there", file=sys.stderr)
        return 1
    table, missed = section(rounds)
    command = (
        f"`make soak ROUNDS={chosen.rounds}` (`python -m tests.soak --rounds {chosen.rounds} --seed {chosen.seed}`)"
    )
    print(report.write(f"{datetime.now(UTC):%Y-%m-%d}-soak-kills", [table], command).read_text())
    file.unlink()  # whole: the next run begins anew
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
