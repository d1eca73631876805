"""Composition root of the supervisor: `python -m cli.roots.supervisor DATA/cluster.json LOCK-DESCRIPTOR`."""

import asyncio
import os
import sys
from pathlib import Path

from cli.cluster import lock, recording, starter, teardown
from cli.cluster.journal import Journal, Mark
from cli.cluster.lock import SupervisorLock
from cli.cluster.supervisor import Supervisor
from cli.cluster.wiring import parts_of
from core.errors import Failure
from core.infra import cluster
from core.infra.clock import SystemClock
from core.infra.cluster import ClusterBlock
from core.infra.logs import Log

_AFTER_POSTGRES_S = 60.0  # Ray and the engine-less rest are ready within ten seconds on two cores


async def supervise(block: ClusterBlock, held: SupervisorLock) -> Failure | None:
    """Keep the cluster's parts alive until SIGTERM, under the lock; return why when it could never start."""
    clock = SystemClock()
    with held:
        lock.announce(block.data_dir)
        journal = Journal(block.log_dir / "start.jsonl", clock)
        try:
            wanted = recording.loaded_settings(block.data_dir, {}).settings
            parts = await asyncio.to_thread(parts_of, block, wanted)
        except Failure as failure:
            journal.write(Mark.ENDED, "cluster", str(failure), failure.as_json())
            await teardown.teardown(block)
            return failure
        supervisor = Supervisor(
            parts=parts,
            first_use=lambda: starter.ensure(block, wanted, journal),
            first_use_needs=frozenset({"controller", "node_agent"}),
            start_deadline_s=wanted.postgres_start_timeout_s + _AFTER_POSTGRES_S,
            teardown=lambda: teardown.teardown(block),
            journal=journal,
            clock=clock,
            log=Log("supervisor", clock),
        )
        return await supervisor.run()


def main(argv: list[str]) -> int:
    """Run the supervisor of the cluster recorded in the given file; the second word is the lock's descriptor."""
    data_dir = Path(argv[0]).parent
    block = cluster.load(data_dir)
    if block is None:
        return 1
    os.set_inheritable(int(argv[1]), False)
    return 0 if asyncio.run(supervise(block, SupervisorLock(data_dir, inherited=int(argv[1])))) is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
