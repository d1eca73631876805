"""`slice logs` on a machine that joined: its own processes and the replicas that run there, from their files."""

import asyncio
import re
from pathlib import Path

from cli.terminal import Terminal
from core.errors import Failure
from core.infra.joined import NodeBlock
from node_agent import logs

_OURS = ("node_agent", "supervisor")
_REPLICA_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


def show(block: NodeBlock, target: str, terminal: Terminal, *, tail: int, is_followed: bool) -> None:
    """Print the last `tail` lines of a log, and go on with it when it is followed.

    Raises:
        Failure: `replica.not_found` or `replica.logs_unavailable`.
    """
    file = _file(block, target)
    try:
        asyncio.run(_shown(file, terminal, tail, is_followed=is_followed))
    except OSError as error:
        raise Failure("replica.logs_unavailable", f"{file} cannot be read: {error.strerror}") from error


def _file(block: NodeBlock, target: str) -> Path:
    if target in _OURS:
        return block.log_dir / f"{target}.log"
    replicas = block.node_dir / "replicas"
    if _REPLICA_ID.match(target) and (replicas / target).is_dir():
        return replicas / target / "engine.log"
    known = ", ".join([*_OURS, *sorted(item.name for item in replicas.glob("*") if item.is_dir())])
    raise Failure(
        "replica.not_found",
        f"nothing called {target!r} runs on this machine, which is node {block.node_name} of a cluster",
        hint=f"here are: {known}. Names of models and deployments are known at the controller's machine",
    )


async def _shown(file: Path, terminal: Terminal, tail: int, *, is_followed: bool) -> None:
    async for piece in logs.chunks(file, tail, follow=is_followed, ended=asyncio.Event()):
        terminal.piece(piece.decode(errors="replace"))
