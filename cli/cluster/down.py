"""`slice down`: end the cluster so that nothing of it is left, whatever is still alive of it."""

import asyncio
import signal
from pathlib import Path

from cli.cluster import teardown
from cli.cluster.parts import wait_gone
from cli.cluster.supervisor import SupervisorLock
from core.infra import cluster
from core.infra.processes import mark, send_signal

_SUPERVISOR_GRACE_S = 120.0  # PostgreSQL's fast shutdown may take a minute, Ray ten seconds


def run(data_dir: Path) -> int:
    """End the cluster of `data_dir`; return 0, also when there was none."""
    block = cluster.load(data_dir)
    if block is None or not data_dir.exists():
        print("nothing to end: no cluster was ever started here")
        return 0
    holder = SupervisorLock(block.data_dir).holder()
    was_up = holder is not None or block.runtime_dir.exists()
    asyncio.run(_end(block, holder))
    print("down" if was_up else "nothing to end: the cluster was down")
    return 0


async def _end(block: cluster.ClusterBlock, holder: int | None) -> None:
    supervisor = mark(holder) if holder is not None else None
    if supervisor is not None:
        send_signal(supervisor, signal.SIGTERM)
        if not await wait_gone(supervisor, _SUPERVISOR_GRACE_S):
            # It hangs: take its place. Only the process itself, its parts are ended one by one below.
            send_signal(supervisor, signal.SIGKILL)
            await wait_gone(supervisor, 10.0)
    if block.runtime_dir.exists():
        await teardown.teardown(block)
