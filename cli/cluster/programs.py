"""How the supervisor starts programs of ours: `python -m cli.roots.NAME FILE`, in one environment for all of them."""

import sys
from collections.abc import Awaitable, Callable, Mapping

from cli.cluster.parts import ProcessPart
from core.infra.cluster import MachineBlock
from core.infra.settings import process_environment


def ours(
    name: str,
    block: MachineBlock,
    environment: Mapping[str, str],
    is_ready: Callable[[], Awaitable[bool]],
    *,
    nice: int = 0,
) -> ProcessPart:
    """Return the part that runs the composition root `name` on `block`; `nice` below 0 lets it run before others."""
    return ProcessPart(
        name=name,
        argv=[sys.executable, "-m", f"cli.roots.{name}", str(block.file)],
        environment=environment,
        log_file=block.log_dir / f"{name}.log",
        parts_dir=block.parts_dir,
        is_ready=is_ready,
        nice=nice,
    )


def environment_of(block: MachineBlock) -> dict[str, str]:
    """Return what our processes inherit: all of ours, and the way back to this very installation."""
    environment = dict(process_environment())
    environment["SLICE_DATA_DIR"] = str(block.data_dir)
    environment["PYTHONUNBUFFERED"] = "1"
    environment["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    return environment
