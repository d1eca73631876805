"""How a root begins and ends: load the block, run, and leave word of a failure that starting again cannot cure."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from cli.cluster.parts import FATAL_EXIT, write_failure
from core.errors import Failure, Retry
from core.infra import cluster
from core.infra.clock import SystemClock
from core.infra.cluster import ClusterBlock, MachineBlock
from core.infra.logs import Log

Block = TypeVar("Block", bound=MachineBlock)


def run_part(name: str, argv: list[str], work: Callable[[ClusterBlock, Log], Awaitable[None]]) -> int:
    """Run one part of the cluster recorded in `argv[0]`; return its exit code."""
    return run_part_of(cluster.load(Path(argv[0]).parent), name, work)


def run_part_of(block: Block | None, name: str, work: Callable[[Block, Log], Awaitable[None]]) -> int:
    """Run one part of what is recorded in `block`; return its exit code."""
    if block is None:
        return 1
    log = Log(name, SystemClock())
    try:
        asyncio.run(_run(work, block, log))
    except Failure as failure:
        log.error("part_failed", code=failure.code, message=failure.message)
        if failure.retry is Retry.NEVER:
            write_failure(block.parts_dir, name, failure)
            return FATAL_EXIT
        return 1
    return 0


async def _run(work: Callable[[Block, Log], Awaitable[None]], block: Block, log: Log) -> None:
    await work(block, log)
