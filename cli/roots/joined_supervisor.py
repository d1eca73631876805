"""Composition root of a joined machine's supervisor: `python -m cli.roots.joined_supervisor DATA/node.json DESCRIPTOR`.

It keeps one part, the node agent, and needs nothing of the controller's: no Ray, no PostgreSQL.
"""

import asyncio
import os
import sys
from pathlib import Path

from cli.cluster import detached, lock, teardown
from cli.cluster.journal import Journal
from cli.cluster.lock import SupervisorLock
from cli.cluster.parts import ProcessPart
from cli.cluster.programs import environment_of, ours
from cli.cluster.supervisor import Supervisor
from core.errors import Failure
from core.infra import joined
from core.infra.clock import SystemClock
from core.infra.joined import NodeBlock
from core.infra.logs import Log
from node_agent import standing

_START_DEADLINE_S = 60.0  # the node agent is there within two seconds, on a busy machine within ten


async def supervise(block: NodeBlock, held: SupervisorLock) -> Failure | None:
    """Keep the node agent alive until SIGTERM, under the lock; return why when it could never start."""
    clock = SystemClock()
    with held:
        lock.announce(block.data_dir)
        supervisor = Supervisor(
            parts=[_node_agent(block)],
            first_use=_nothing,
            first_use_needs=frozenset(),
            start_deadline_s=_START_DEADLINE_S,
            teardown=lambda: teardown.teardown_node(block),
            journal=Journal(detached.journal_file(block), clock),
            clock=clock,
            log=Log("supervisor", clock),
        )
        return await supervisor.run()


async def _nothing() -> None:
    """A node has no first use: what runs on it, the controller says."""


def _node_agent(block: NodeBlock) -> ProcessPart:
    async def is_ready() -> bool:
        # That it dials is enough: after a reboot it starts its last desired set, whether a controller answers or not.
        return await asyncio.to_thread(standing.read, block.standing_file) is not None

    return ours("node_agent", block, environment_of(block), is_ready)


def main(argv: list[str]) -> int:
    """Run the supervisor of the node recorded in the given file; the second word is the lock's descriptor."""
    data_dir = Path(argv[0]).parent
    block = joined.load(data_dir)
    if block is None:
        return 1
    os.set_inheritable(int(argv[1]), False)
    return 0 if asyncio.run(supervise(block, SupervisorLock(data_dir, inherited=int(argv[1])))) is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
