"""What `slice doctor` looks at on a machine that joined: its processes, its session, its certificate. Reads only."""

from collections.abc import Iterable
from datetime import datetime

from cli.cluster.finding import Finding
from cli.joined.status import status
from core.infra.joined import NodeBlock
from node_agent.dialing import JOIN_AGAIN


def findings(block: NodeBlock, now: datetime) -> Iterable[Finding]:
    """Yield what was found of this machine's node."""
    found = status(block, now)
    yield Finding(name="node", is_ok=True, detail=f"{block.node_name} of cluster {block.cluster_id}")
    yield Finding(
        name="certificate",
        is_ok=bool(found["is_certificate_valid"]),
        detail=str(found["certificate"]),
        hint="" if found["is_certificate_valid"] else f"is this host's clock right? else {JOIN_AGAIN}",
    )
    if found["state"] == "down" and found["supervisor_pid"] is None:
        yield Finding(name="node agent", is_ok=None, detail="down", hint="`slice up` starts it")
        return
    yield Finding(
        name="supervisor",
        is_ok=found["supervisor_pid"] is not None,
        detail=f"pid {found['supervisor_pid']}" if found["supervisor_pid"] else "gone; the rest serves on",
        hint="" if found["supervisor_pid"] else "`slice up` starts a new one, which adopts what runs",
    )
    yield Finding(
        name="node agent",
        is_ok=found["node_agent_pid"] is not None,
        detail=f"pid {found['node_agent_pid']}" if found["node_agent_pid"] else "not running",
        hint="" if found["node_agent_pid"] else f"its log is {block.log_dir / 'node_agent.log'}",
    )
    is_open = found["state"] == "open"
    yield Finding(
        name=f"the controller at {block.controller} hears it",
        is_ok=is_open,
        detail="yes" if is_open else str(found["message"] or found["state"]),
        hint="" if is_open else "does the controller run, and does a firewall let this machine reach that port?",
    )
