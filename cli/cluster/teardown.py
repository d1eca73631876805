"""Ending a cluster so that nothing of it is left: no process, no socket, no Ray session.

Works from what is recorded, so it needs neither the supervisor nor any part alive; safe to run twice. Called by the
supervisor on SIGTERM, and by `slice down` when there is no supervisor to ask.
"""

import asyncio
import shutil
import signal
from collections.abc import Awaitable

from cli.cluster import door
from cli.cluster.parts import record_file, recorded, stop_process
from core.errors import Failure
from core.infra.cluster import ClusterBlock, MachineBlock
from core.infra.joined import NodeBlock
from node_agent import agent

_OURS_GRACE_S = 10.0
_ENGINE_GRACE_S = 10.0
_POSTGRES_GRACE_S = 60.0  # a fast shutdown writes a checkpoint: up to max_wal_size of dirty pages


async def teardown(block: ClusterBlock) -> None:
    """End every part and engine of the cluster, then remove its runtime directory.

    Every step is done, whatever happens to the others.

    Raises:
        Failure: `cluster.stop_failed` when something would not end; what that is stands in its message.
    """
    troubles = await _all(door.clear(block), _end_node_then_controller(block))
    troubles += await _all(_end(block, "postgres", signal.SIGINT, _POSTGRES_GRACE_S))
    await _finish(block, troubles)


async def teardown_node(block: NodeBlock) -> None:
    """End the node agent and every engine of a machine that joined, then remove its runtime directory.

    Raises:
        Failure: `cluster.stop_failed` when something would not end; what that is stands in its message.
    """
    await _finish(block, await _all(end_node(block)))


async def _finish(block: MachineBlock, troubles: list[BaseException]) -> None:
    await asyncio.to_thread(shutil.rmtree, block.runtime_dir, ignore_errors=True)
    if troubles:
        raise Failure(
            "cluster.stop_failed",
            "not all of the cluster could be ended: " + "; ".join(str(trouble) for trouble in troubles),
            hint="run `slice down` again; `slice doctor` shows what still lives",
        )


async def _all(*steps: Awaitable[None]) -> list[BaseException]:
    """Do all `steps` beside each other and return what went wrong."""
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    return [outcome for outcome in outcomes if outcome is not None]


async def end_node(block: MachineBlock) -> None:
    """End the node agent, then every engine of this machine.

    Raises:
        Failure: `shim.lost` when a process survives.
    """
    await _end(block, "node_agent", signal.SIGTERM, _OURS_GRACE_S)
    await agent.stop_all_engines(block.node_dir, block.shim_dir, _ENGINE_GRACE_S)


async def _end_node_then_controller(block: ClusterBlock) -> None:
    engines = await _all(end_node(block))
    await _end(block, "controller", signal.SIGTERM, _OURS_GRACE_S)
    for trouble in engines:
        raise trouble


async def _end(block: MachineBlock, name: str, first: signal.Signals, grace_s: float) -> None:
    process = recorded(block.parts_dir, name)
    if process is not None:
        await stop_process(process, first, grace_s)
    record_file(block.parts_dir, name).unlink(missing_ok=True)
