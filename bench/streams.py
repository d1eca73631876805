"""What fifty streams lose when one of three machines is in trouble: machines in network namespaces, two engines.

In: nothing but this machine, root and `ip netns`. Out: one table. Called by `python -m bench streams`; not a test.
"""

import asyncio
import tempfile
from pathlib import Path

from bench.report import Section
from tests.many.losses import IDLE_S, STREAMS, TROUBLES, two_engines
from tests.many.streams import HEADER, Toll


def measured() -> list[Section]:
    """Return the table of all troubles, each met once."""
    return [_section(asyncio.run(_met()))]


async def _met() -> list[Toll]:
    tolls = []
    with tempfile.TemporaryDirectory() as directory:
        async with two_engines(Path(directory)) as losing:
            for how in TROUBLES:
                tolls.append(await losing.meet(how))
                print(" | ".join(tolls[-1].cells()), flush=True)
    return tolls


def _section(tolls: list[Toll]) -> Section:
    return Section(
        title=f"{STREAMS} streams and a machine in trouble",
        method="Three machines in network namespaces, mTLS between them. Two that joined serve a fake engine that says "
        f"a word every 250 ms, to {STREAMS} clients, and a llama.cpp of random weights, to 4, without pause. Killed: "
        "SIGKILL to all processes of the machine. Cut: its end of the wire set down. Suspended: SIGSTOP to all of "
        "them; the kernel goes on acknowledging. Rebooted: killed and started at once with another boot id. Drained, "
        "moved: by `slice node drain` and `slice move`. Whole: every word, the right count of tokens, [DONE]. Told: an "
        "error event and no [DONE]. Refused: an error before the first byte. Nothing may be cut silently. "
        f"`door_idle_timeout_s` is {IDLE_S:g}, which is not what ended them if the longest is shorter.",
        header=HEADER,
        rows=tuple(toll.cells() for toll in tolls),
    )
