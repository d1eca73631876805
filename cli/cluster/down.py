"""`slice down`: end the cluster so that nothing of it is left, whatever is still alive of it."""

import asyncio
import signal
from pathlib import Path

from cli.cluster import lock, teardown
from cli.cluster.lock import SupervisorLock
from cli.cluster.parts import wait_gone
from core.infra import cluster, joined
from core.infra.cluster import ClusterBlock, MachineBlock
from core.infra.joined import NodeBlock
from core.infra.processes import send_signal

_SUPERVISOR_GRACE_S = 120.0  # PostgreSQL's fast shutdown may take a minute, Ray ten seconds
_LOOK_AGAIN_S = 0.5


def run(data_dir: Path) -> int:
    """End the cluster of `data_dir`, or what a machine that joined runs; return 0, also when there was none.

    Raises:
        Failure: something of it would not end.
    """
    block = (cluster.load(data_dir) or joined.load(data_dir)) if data_dir.exists() else None
    if block is None:
        print("nothing to end: no cluster was ever started here")
        return 0
    if cluster.is_moved(data_dir) or joined.is_moved(data_dir):
        print("nothing to end: this directory was copied or moved, and no cluster was started in its new place")
        return 0
    was_up = lock.is_held(block.data_dir) or block.runtime_dir.exists() or any(block.parts_dir.glob("*.json"))
    asyncio.run(_end(block))
    print("down" if was_up else "nothing to end: the cluster was down")
    return 0


async def _end(block: ClusterBlock | NodeBlock) -> None:
    """End the supervisor, then do its teardown once more under the lock: whatever it left goes too."""
    with SupervisorLock(block.data_dir) as held:
        await take_over(block, held)
        if isinstance(block, NodeBlock):
            await teardown.teardown_node(block)
        else:
            await teardown.teardown(block)


async def take_over(block: MachineBlock, held: SupervisorLock) -> None:
    """Take the lock of `block`'s directory from whoever has it; a supervisor is told to end, and does its teardown."""
    while not await asyncio.to_thread(held.try_hold, _LOOK_AGAIN_S):
        # Either a supervisor has it, or an `up` that is about to start one.
        supervisor = lock.supervisor(block.data_dir)
        if supervisor is None:
            continue
        send_signal(supervisor, signal.SIGTERM)
        if not await wait_gone(supervisor, _SUPERVISOR_GRACE_S):
            # It hangs: take its place. Only the process itself; its parts are ended one by one afterwards.
            send_signal(supervisor, signal.SIGKILL)
            await wait_gone(supervisor, 10.0)
