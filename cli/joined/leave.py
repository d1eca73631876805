"""`slice node leave`: from a node of a cluster back to a machine that never joined, its model files apart.

The order is what makes it safe to kill anywhere and to run again: 1 the controller moves its work away while all of it
serves on; 2 node agent and engines end here; 3 the cluster forgets the node and revokes its certificates; 4 `node.json`
is renamed, so that the machine is no node any more; 5 what is left of it is removed, the renamed file last. Before 3
nothing is lost: `slice up` here and `slice node uncordon` there undo it.
"""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import polling
from cli.client import Json
from cli.cluster import down, teardown
from cli.cluster.lock import SupervisorLock
from cli.cluster.parts import recorded
from cli.human import size
from cli.invocation import Invocation
from cli.joined import farewell
from cli.progress import status_line
from core.errors import Failure
from core.infra import cluster, joined
from core.infra.joined import NodeBlock
from core.units import text_from_seconds

_LOCK_WAIT_S = 5.0
_ATTEMPTS = 3
_KEPT_OF_NODE = frozenset({"store", "engines", "downloads"})
"""Below `node/`: what took long to bring and belongs to no cluster."""


@dataclass(frozen=True, kw_only=True)
class LeaveRequest:
    """What the command line asked for; `timeout_s` None waits for as long as it takes."""

    data_dir: Path
    is_waiting: bool
    timeout_s: float | None
    is_forced: bool
    is_purging: bool


@dataclass(frozen=True, kw_only=True)
class Gone:
    """What became of the node; `untold` is why its controller does not know, None when it does."""

    block: NodeBlock
    untold: Failure | None = None
    was_begun: bool = False


def run(request: LeaveRequest, invocation: Invocation) -> Gone | None:
    """Leave the cluster; return what became of it, or None when this machine is no node.

    Raises:
        Failure: the controller cannot be told and it is not forced; something here would not end; or it still holds
            replicas after the time-out. What has been done stays done, and the same command goes on from there.
    """
    block = _known(request.data_dir)
    if block is None:
        left = joined.left(request.data_dir) if request.data_dir.is_dir() else None
        return None if left is None else _finished(left, request)
    is_heard = _empty(block, request, invocation)
    with SupervisorLock(block.data_dir) as held:
        asyncio.run(_end(block, held))
        if joined.load(block.data_dir) is None:  # another `slice node leave` was faster
            return Gone(block=block, was_begun=True)
        untold = _tell(block, request, invocation, attempts=_ATTEMPTS if is_heard else 1)
        joined.mark_left(block)
        _remove(block, is_purging=request.is_purging)
    return Gone(block=block, untold=untold)


def _known(data_dir: Path) -> NodeBlock | None:
    if not data_dir.is_dir():
        return None
    if cluster.load(data_dir) is not None:
        raise Failure(
            "node.in_use",
            "this is the controller's own machine, which does not leave its cluster",
            hint="`slice down` stops it; `slice node drain` empties its node",
        )
    block = joined.load(data_dir)
    if block is not None and joined.is_moved(data_dir):
        raise Failure(
            "cluster.data_dir_unusable",
            f"{data_dir} was copied or moved since its node was last started: the original may be at work elsewhere",
            hint="`slice up` here first if it was moved; remove the directory if it is a copy",
        )
    return block


def _empty(block: NodeBlock, request: LeaveRequest, invocation: Invocation) -> bool:
    """Drain the node: see that its controller answers, then wait until it holds nothing; return whether it answers.

    A node whose node agent is down has nothing left to wait for: its engines have ended.
    """
    try:
        found = asyncio.run(farewell.asked(block, invocation.clock, is_final=False))
        is_up = recorded(block.parts_dir, "node_agent") is not None
        if request.is_waiting and is_up and found["remaining"] and not found["is_gone"]:
            _wait(block, request, invocation)
    except Failure as failure:
        if failure.code == "node.in_use":  # it answers, and says no, or still holds something
            raise
        if not request.is_forced:
            raise _undone(failure, "nothing was ended here") from None
        return False
    return True


def _wait(block: NodeBlock, request: LeaveRequest, invocation: Invocation) -> None:
    clock, timeout_s = invocation.clock, request.timeout_s
    deadline = None if timeout_s is None else clock.monotonic() + timeout_s
    line = status_line(invocation.terminal)

    def look() -> Json:
        return asyncio.run(farewell.asked(block, clock, is_final=False))

    try:
        for found in polling.looks(look, line.say, clock):
            if found["is_gone"] or not found["remaining"]:
                return
            sentence = remaining_sentence(found)
            line.say(sentence)
            if deadline is not None and clock.monotonic() > deadline:
                raise Failure(
                    "node.in_use",
                    f"not left after {text_from_seconds(timeout_s or 0)}. {sentence}",
                    hint="it is drained on; --now leaves at once, "
                    f"`slice node uncordon {block.node_name}` on the controller's machine takes it back",
                )
    finally:
        line.close()


def remaining_sentence(found: Json) -> str:
    """Return what a node that leaves still holds, and what the first of it waits for; what is stuck before the rest."""
    left = sorted(found["remaining"], key=lambda one: not one["is_stuck"])
    count = len(left)
    head = f"{found['name']} still holds {count} replica{'s' if count != 1 else ''}"
    cure = "; --now leaves all the same" if left[0]["is_stuck"] else ""
    return f"{head}; {left[0]['deployment']}: {left[0]['waiting']}{cure}"


async def _end(block: NodeBlock, held: SupervisorLock) -> None:
    await down.take_over(block, held)
    await teardown.teardown_node(block)


def _tell(block: NodeBlock, request: LeaveRequest, invocation: Invocation, *, attempts: int) -> Failure | None:
    """Have the cluster forget the node; return why it could not be told, which only force allows."""
    try:
        asyncio.run(farewell.gone(block, invocation.clock, attempts))
    except Failure as failure:
        if not request.is_forced:
            raise _undone(failure, "everything here has stopped, and its cluster still knows this node") from None
        return failure
    return None


def _undone(failure: Failure, what: str) -> Failure:
    hint = "run `slice node leave` again then, or with --force, which leaves without a word to the controller"
    return Failure(failure.code, f"{failure.message}; {what}", hint=f"{failure.hint} {hint}".strip())


def _finished(block: NodeBlock, request: LeaveRequest) -> Gone:
    """Remove what an earlier leaving was killed at."""
    with SupervisorLock(block.data_dir) as held:
        if not held.try_hold(_LOCK_WAIT_S):
            raise Failure(
                "node.already_running",
                f"another command works in {block.data_dir}",
                hint="wait for it, then run `slice node leave` again",
            )
        _remove(block, is_purging=request.is_purging)
    return Gone(block=block, was_begun=True)


def _remove(block: NodeBlock, *, is_purging: bool) -> None:
    for path in _remains(block, is_purging=is_purging):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise Failure(
                "cluster.data_dir_unusable",
                f"{path} cannot be removed: {error.strerror}",
                hint="cure that, then `slice node leave` again: the cluster knows this node no more",
            ) from error
    (block.data_dir / joined.LEFT_FILE).unlink(missing_ok=True)


def _remains(block: NodeBlock, *, is_purging: bool) -> Iterator[Path]:
    """Yield what is to be removed; the key first, since it is a secret."""
    yield from sorted([*block.data_dir.glob("tls*"), *block.data_dir.glob(".tls*")])
    yield from (item for item in block.node_dir.glob("*") if is_purging or item.name not in _KEPT_OF_NODE)
    yield block.parts_dir
    yield block.data_dir / "supervisor.json"
    if is_purging:
        yield from (block.node_dir, block.log_dir, block.data_dir / "flags.json")


def facts(gone: Gone) -> dict[str, Any]:
    """Return what became of the node as an object."""
    block = gone.block
    return {
        "node_name": block.node_name,
        "node_id": block.node_id,
        "cluster_id": block.cluster_id,
        "controller": block.controller,
        "data_dir": str(block.data_dir),
        "is_told": gone.untold is None,
        "untold": gone.untold.as_json() if gone.untold is not None else None,
        "kept_bytes": kept_bytes(block),
    }


def sentences(gone: Gone) -> Iterator[str]:
    """Yield what became of the node, and what somebody has to do yet."""
    block = gone.block
    head = "what was left of it is removed" if gone.was_begun else f"it has left the cluster at {block.controller}"
    yield f"{block.node_name}: {head}; a new line of `slice node token create` lets this machine join again"
    if gone.untold is not None:
        yield (
            f"its controller was not told ({gone.untold.message}): there the node is offline or lost, what it promised "
            "stays promised, and its certificate stays good for up to a day"
        )
        yield f"on the controller's machine: `slice node forget {block.node_name}` cures all of it"
    if kept := kept_bytes(block):
        yield f"{size(kept)} of models and engines stay in {block.node_dir}; `--purge` removes them"


def kept_bytes(block: NodeBlock) -> int:
    """Return how many bytes of models, engines and downloads are still in the directory."""
    files = (item for name in _KEPT_OF_NODE for item in (block.node_dir / name).rglob("*"))
    return sum(item.lstat().st_size for item in files if item.is_file() and not item.is_symlink())
