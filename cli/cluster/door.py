"""The front door as a part: Ray and the Serve app under a shim of their own.

The shim is the subreaper of everything Ray starts, so that a redeploy or a stop leaves none of it; it outlives the
supervisor, and the next one attaches to it. When the host program ends (Ray's GCS died, say) the shim kills the rest
and the supervisor starts all of it anew: Ray holds nothing durable.
"""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from cli.cluster.parts import Ended, last_line
from core.errors import Failure
from core.infra.cluster import ClusterBlock
from node_agent import shim_client
from node_agent.shim_client import ShimHandle, ShimSpec

STOP_GRACE_S = 10.0


def door_socket(block: ClusterBlock) -> Path:
    """Return the shim's socket."""
    return block.runtime_dir / "door.sock"


def door_record(block: ClusterBlock) -> Path:
    """Return the directory where the door's shim records its process tree."""
    return block.door_dir / "shim"


async def handle(block: ClusterBlock) -> ShimHandle | None:
    """Return the door's living shim, or None."""
    return await shim_client.attach(door_socket(block))


async def clear(block: ClusterBlock) -> None:
    """End the door and everything it started, whether its shim lives or was killed."""
    with contextlib.suppress(Failure):  # a shim that does not answer is swept with its tree
        living = await handle(block)
        if living is not None:
            await living.stop(STOP_GRACE_S)
            await living.release()
    await shim_client.sweep(door_record(block))
    door_socket(block).unlink(missing_ok=True)


class DoorPart:
    """Implements `parts.Part` on a shim."""

    def __init__(
        self,
        *,
        block: ClusterBlock,
        config_file: Path,
        environment: Mapping[str, str],
        is_ready: Callable[[], Awaitable[bool]],
    ) -> None:
        self._block = block
        self._config_file = config_file
        self._environment = environment
        self._is_ready = is_ready
        self._handle: ShimHandle | None = None
        self._incarnation = 0

    @property
    def name(self) -> str:
        """Its name in logs and records."""
        return "door"

    async def adopt(self) -> bool:
        """Attach to a living shim whose host program still runs."""
        try:
            living = await handle(self._block)
            if living is None or (await living.status()).state != "running":
                return False
        except Failure:
            return False  # it does not answer: `start` clears it away
        self._handle = living
        return True

    async def start(self) -> None:
        """Clear what an earlier door left, then start a shim with the host program."""
        await clear(self._block)
        await asyncio.to_thread(door_record(self._block).mkdir, 0o700, True, True)
        self._incarnation += 1
        spec = ShimSpec(
            shim_id="door",
            argv=(sys.executable, "-m", "cli.roots.door", str(self._config_file)),
            env=self._environment,
            cwd=Path("/"),
            log_path=self._block.log_dir / "door.log",
            record_dir=door_record(self._block),
            socket_path=door_socket(self._block),
            incarnation=self._incarnation,
            stop_grace_s=STOP_GRACE_S,
            log_max_bytes=20 * 1024**2,
        )
        self._handle = await shim_client.start(spec, sys.executable)

    def last_words(self) -> str:
        """Return the last line of its log."""
        return last_line(self._block.log_dir / "door.log")

    async def is_ready(self) -> bool:
        """Return whether the front door answers its health path."""
        return await self._is_ready()

    async def ended(self) -> Ended:
        """Wait until the host program or the shim has ended; the rest of the tree is gone then."""
        if self._handle is None:
            return Ended(status=None)
        try:
            status = await self._handle.wait_exit()
        except Failure:
            # The shim itself was killed; `start` sweeps what it left.
            return Ended(status=None)
        return Ended(status=status.exit_code)
