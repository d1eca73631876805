"""Composition root of the supervisor: `python -m cli.roots.supervisor DATA/cluster.json`."""

import asyncio
import sys
from pathlib import Path

from cli.cluster import recording, starter, teardown
from cli.cluster.journal import Journal, Mark
from cli.cluster.supervisor import Supervisor, SupervisorLock
from cli.cluster.wiring import parts_of
from core.errors import Failure
from core.infra import cluster
from core.infra.clock import SystemClock
from core.infra.cluster import ClusterBlock
from core.infra.logs import Log


async def supervise(block: ClusterBlock) -> Failure | None:
    """Hold the cluster's lock and keep its parts alive until SIGTERM; return why when it could never start."""
    clock = SystemClock()
    journal = Journal(block.log_dir / "start.jsonl", clock)
    with SupervisorLock(block.data_dir) as lock:
        if not lock.try_hold():
            return Failure(
                "cluster.start_failed", "another supervisor has this data directory", hint="run `slice up` again"
            )
        try:
            wanted = recording.loaded_settings(block.data_dir, {}).settings
            parts = await asyncio.to_thread(parts_of, block, wanted)
        except Failure as failure:
            journal.write(Mark.ENDED, "cluster", str(failure), failure.as_json())
            return failure
        supervisor = Supervisor(
            parts=parts,
            first_use=lambda: starter.ensure(block, wanted, journal),
            first_use_needs=frozenset({"controller", "node_agent"}),
            teardown=lambda: teardown.teardown(block),
            journal=journal,
            clock=clock,
            log=Log("supervisor", clock),
        )
        return await supervisor.run()


def main(argv: list[str]) -> int:
    """Run the supervisor of the cluster recorded in the given file."""
    block = cluster.load(Path(argv[0]).parent)
    if block is None:
        return 1
    return 0 if asyncio.run(supervise(block)) is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
