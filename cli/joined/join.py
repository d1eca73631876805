"""`slice node join`: from a line to a machine that is a node of the line's cluster, or to nothing at all.

Everything that can be seen to be wrong is seen before the token is sent; what is written comes after the answer, with
`node.json` last. On any failure before that the directory is as it was. `--again` renews a node's place: same id, new
certificate; engines and files stay, and only the node agent is started anew.
"""

import asyncio
import contextlib
import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cli.cluster import lock, recording
from cli.cluster.lock import SupervisorLock
from cli.cluster.parts import recorded, wait_gone
from cli.joined import admission, up
from cli.joined.admission import Admitted, Host, Newcomer
from cli.roots.node_agent import hostname
from core import joining, names
from core.clock import Clock
from core.errors import Failure
from core.infra import cluster, credentials, joined
from core.infra.entropy import SystemEntropy
from core.infra.joined import NodeBlock
from core.infra.processes import send_signal
from core.infra.settings import process_environment
from core.joining import JoinLine
from node_agent import identity

_LOCK_WAIT_S = 0.3
_NODE_AGENT_END_S = 15.0


@dataclass(frozen=True, kw_only=True)
class JoinRequest:
    """What the command line asked for; `plane_host` "" is the address that the controller is reached from.

    `flags` are settings by name, None where not given.
    """

    data_dir: Path
    line: str
    name: str
    plane_host: str
    is_again: bool
    is_starting: bool
    flags: Mapping[str, object]
    output: str  # "text" or "json"


def run(request: JoinRequest, clock: Clock) -> int:
    """Join, start the node agent, wait until the controller hears it; return the exit code.

    Raises:
        Failure: something about the line, this machine or the controller forbids it.
    """
    line = joining.parse_line(request.line)
    known = _known(request)
    name = names.checked_name("node", request.name or (known.node_name if known else hostname()))
    recording.loaded_settings(request.data_dir, request.flags)
    with _tidied(request.data_dir):
        recording.claim(request.data_dir)
        recording.check_writable(request.data_dir)
        with SupervisorLock(request.data_dir.resolve()) as held:
            if not held.try_hold(_LOCK_WAIT_S) and known is None:
                raise Failure(
                    "node.already_joined",
                    f"another command works in {request.data_dir}",
                    hint="wait for it; `slice status` shows what came of it",
                )
            block, answer = asyncio.run(_joined(replace(request, name=name), line, known, clock))
            _write(block, answer.credentials, request.flags)
    asyncio.run(_restart_node_agent(block))
    if not request.is_starting:
        up.tell(block, request.output, is_approved=answer.is_approved)
        return 0
    return up.bring_up(block, request.output, is_approved=answer.is_approved)


def _known(request: JoinRequest) -> NodeBlock | None:
    """Return the block of a machine that is to join again, None of one that never did.

    Raises:
        Failure: `node.already_joined`.
    """
    if cluster.load(request.data_dir) is not None:
        raise Failure(
            "node.already_joined",
            f"{request.data_dir} is the cluster of a controller, whose machine is a node of it already",
            hint="join with another --data-dir, or on another machine",
        )
    known = joined.load(request.data_dir)
    if known is not None and not request.is_again:
        raise Failure(
            "node.already_joined",
            f"this machine is node {known.node_name} of the cluster at {known.controller} already",
            hint="`slice up` starts it; --again gets it a new certificate, another --data-dir makes it a second node",
        )
    return known


async def _joined(
    request: JoinRequest, line: JoinLine, known: NodeBlock | None, clock: Clock
) -> tuple[NodeBlock, Admitted]:
    host = await admission.host_of(line, clock.now())
    if known is not None and known.cluster_id != host.cluster_id:
        raise Failure(
            "node.already_joined",
            f"this machine is a node of cluster {known.cluster_id}, the line is of {host.cluster_id}",
            hint="join the other one with another --data-dir",
        )
    block = _block(request, line, known, host)
    newcomer = Newcomer(node_id=block.node_id, node_name=block.node_name, machine_id=identity.machine_id())
    answer = await admission.admitted(line, host, newcomer, clock.now())
    return NodeBlock(**{**vars(block), "node_name": answer.node_name}), answer


def _block(request: JoinRequest, line: JoinLine, known: NodeBlock | None, host: Host) -> NodeBlock:
    data_dir = request.data_dir.resolve()
    return NodeBlock(
        cluster_id=host.cluster_id,
        data_dir=data_dir,
        runtime_dir=cluster.runtime_dir_of(data_dir, process_environment()),
        base_port=known.base_port if known else recording.free_base_port(data_dir),
        node_id=known.node_id if known else SystemEntropy().fresh("nod"),
        node_name=request.name,
        controller_host=line.host,
        controller_port=line.port,
        plane_host=request.plane_host or host.local_host,
    )


def _write(block: NodeBlock, given: credentials.Credentials, flags: Mapping[str, object]) -> None:
    """Write all that makes a node; it is one from the moment that the last file is there.

    Raises:
        Failure: `cluster.data_dir_unusable`.
    """
    try:
        cluster.make_private_dir(block.node_dir)
        text = json.dumps({"node_id": block.node_id}) + "\n"
        cluster.write_private(block.node_dir / "identity.json", text)
        credentials.store(block.tls_dir, given)
        recording.remember_flags(block.data_dir, flags)
        cluster.save(block)
    except OSError as error:
        raise Failure(
            "cluster.data_dir_unusable",
            f"{block.data_dir} cannot be written: {error.strerror}",
            hint="cure that, then join with a new line: this one's token is used",
        ) from error


@contextlib.contextmanager
def _tidied(data_dir: Path) -> Iterator[None]:
    """Leave `data_dir` as it was unless what is done within ends well; a node that joins again loses nothing."""
    before = {item.name for item in data_dir.iterdir()} if data_dir.is_dir() else None
    try:
        yield
    except BaseException:
        if data_dir.is_dir() and joined.FILE not in (before or ()):
            for item in data_dir.iterdir():
                if item.name not in (before or ()):
                    _remove(item)
            if before is None:
                with contextlib.suppress(OSError):
                    data_dir.rmdir()
        raise


def _remove(item: Path) -> None:
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item, ignore_errors=True)
    else:
        item.unlink(missing_ok=True)


async def _restart_node_agent(block: NodeBlock) -> None:
    """End a node agent that runs already: its supervisor starts it with what was written; engines go on."""
    process = recorded(block.parts_dir, "node_agent") if lock.is_held(block.data_dir) else None
    if process is not None:
        send_signal(process, signal.SIGTERM)
        await wait_gone(process, _NODE_AGENT_END_S)
