"""`slice up` on a machine that joined: start its supervisor, wait until the controller hears its node agent.

The controller may be away: then the node agent runs and dials, engines of the last desired set are started, and the
command says so with an exit code of its own.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from cli.cluster import detached, lock, recording
from cli.cluster.journal import JournalReader, Mark
from cli.cluster.lock import SupervisorLock
from cli.cluster.parts import recorded
from cli.roots import joined_supervisor
from core import joining
from core.errors import CODES, Failure, Retry
from core.infra import cluster, credentials, joined
from core.infra.joined import NodeBlock
from node_agent import standing
from node_agent.standing import Standing, State

_SESSION_S = 15.0
_LOOK_EVERY_S = 0.05
_LOCK_WAIT_S = 0.3
_FLAGS = frozenset({"devices", "wheel_dir"})
"""Settings of a node; all others are the controller's."""


def run(data_dir: Path, flags: Mapping[str, object], output: str, *, is_foreground: bool) -> int:
    """Bring this machine's node up, or say that it is; return the exit code.

    Raises:
        Failure: something about the request or this machine forbids it, or no controller hears the node.
    """
    block = joined.load(data_dir)
    assert block is not None, "the caller has looked"
    for key, given in flags.items():
        if given is not None and key not in _FLAGS:
            raise Failure(
                "request.usage",
                f"{key} is a setting of a controller, and this machine is a node of {block.controller}",
                hint="run this on the controller's machine, or use another --data-dir for a cluster of its own here",
                param=key,
            )
    recording.loaded_settings(block.data_dir, flags)
    if not lock.is_held(block.data_dir):
        block = _prepared(block)
        recording.remember_flags(block.data_dir, flags)
    return bring_up(block, output, is_foreground=is_foreground)


def bring_up(block: NodeBlock, output: str, *, is_foreground: bool = False, is_approved: bool = True) -> int:
    """Start the supervisor of `block` unless it runs, and wait for the session.

    Raises:
        Failure: the start was given up, or no controller hears the node.
    """
    make_dirs(block)
    with SupervisorLock(block.data_dir) as held:
        if held.try_hold(_LOCK_WAIT_S):
            detached.journal_file(block).unlink(missing_ok=True)
            if is_foreground:
                return _in_foreground(block, held, output)
            detached.start(block, "joined_supervisor", held)
            held.release()
            is_fresh = True
        else:
            is_fresh = False
    _follow(block, is_fresh=is_fresh)
    await_session(block)
    tell(block, output, is_approved=is_approved)
    return 0


def make_dirs(block: NodeBlock) -> None:
    """Make every private directory of a node."""
    for path in (block.runtime_dir, block.shim_dir, block.parts_dir, block.node_dir, block.log_dir):
        cluster.make_private_dir(path)


def await_session(block: NodeBlock) -> None:
    """Wait until the controller hears this node, at most a quarter of a minute.

    Raises:
        Failure: the controller refuses it, or cannot be reached; the node agent goes on dialling either way.
    """
    pause = threading.Event()
    found: Standing | None = None
    for _ in range(int(_SESSION_S / _LOOK_EVERY_S)):
        found = standing.read(block.standing_file)
        if found is not None and found.state is State.OPEN:
            return
        if found is not None and found.state is State.REFUSED and CODES.get(found.code, (None, 0))[1] is Retry.NEVER:
            raise Failure(found.code, found.message, hint=found.hint)
        pause.wait(_LOOK_EVERY_S)
    why = f": {found.message}" if found is not None and found.message else ""
    raise Failure(
        "controller.unreachable",
        f"the node agent runs, but the controller at {block.controller} does not hear it{why}",
        hint="it goes on dialling, and what runs here serves on; `slice status` shows how it stands",
    )


def tell(block: NodeBlock, output: str, *, is_approved: bool) -> None:
    """Print what this machine is now, and what to do next."""
    own = credentials.load(block.tls_dir)
    expires_at = own.holder.expires_at.isoformat(timespec="seconds") if own is not None else ""
    facts = {
        "cluster_id": block.cluster_id,
        "node_id": block.node_id,
        "node_name": block.node_name,
        "controller": block.controller,
        "plane": joining.address(block.plane_host, block.plane_port),
        "data_dir": str(block.data_dir),
        "certificate_expires_at": expires_at,
        "is_approved": is_approved,
    }
    if output == "json":
        print(json.dumps(facts))
        return
    print(_JOINED.format(**facts))
    if not is_approved:
        print(f"  it gets no work before `slice node approve {block.node_name}` on the controller's machine\n")


def _prepared(block: NodeBlock) -> NodeBlock:
    """Return the block of a node that is about to start, in step with where its directory lies and what ports it has.

    Raises:
        Failure: the directory is unusable, the disk is full, or no ports are free.
    """
    recording.check_writable(block.data_dir)
    if joined.is_moved(block.data_dir):
        recording.forget_processes(block)
    is_adopting = recorded(block.parts_dir, "node_agent") is not None or any(block.shim_dir.glob("*.sock"))
    if not is_adopting and not recording.is_free(block.base_port):
        block = NodeBlock(**{**vars(block), "base_port": recording.free_base_port(block.data_dir)})
    cluster.save(block)
    return block


def _follow(block: NodeBlock, *, is_fresh: bool) -> None:
    journal = detached.journal_file(block)
    if not is_fresh:
        marks = [line.mark for line in JournalReader(journal).new_lines()]
        if Mark.STOPPING in marks[-1:]:
            raise detached.stopping()
        if Mark.READY in marks:
            return
    detached.follow(journal, lambda: lock.is_held(block.data_dir), is_plain=not sys.stderr.isatty())


def _in_foreground(block: NodeBlock, held: SupervisorLock, output: str) -> int:
    def follow() -> None:
        # The supervisor below tells the same failure; this thread only shows the way there.
        try:
            detached.follow(detached.journal_file(block), lambda: True, is_plain=True)
            await_session(block)
            tell(block, output, is_approved=True)
        except Failure as failure:
            print(failure, file=sys.stderr)

    threading.Thread(target=follow, daemon=True).start()
    failure = asyncio.run(joined_supervisor.supervise(block, held))
    if failure is not None:
        raise failure
    return 0


_JOINED = """
  node         {node_name} ({node_id})
  cluster      {cluster_id}
  controller   {controller}
  data plane   {plane}
  data         {data_dir}
  certificate  until {certificate_expires_at}, renewed by itself

  On the controller's machine: `slice node list`, `slice deploy MODEL`.
  Here: `slice status`, `slice doctor`, `slice logs`, `slice down`, `slice up`.
"""
