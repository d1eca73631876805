"""How a machine that joined stands: what can be said of a node without asking its controller's admin API."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cli.cluster import lock
from cli.cluster.parts import recorded
from cli.human import ABSENT
from cli.tables import Facts, View
from core import joining
from core.errors import Failure
from core.infra import credentials
from core.infra.joined import NodeBlock
from core.units import text_from_seconds
from node_agent import standing

VIEW = View(name=lambda item: str(item["node_name"]), columns=(), empty="")


def status(block: NodeBlock, now: datetime) -> Mapping[str, Any]:
    """Return the standing of this machine as an object; `state` is one of `node_agent.standing`, or `down`."""
    found = standing.read(block.standing_file)
    supervisor = lock.supervisor(block.data_dir)
    node_agent = recorded(block.parts_dir, "node_agent")
    return {
        "node_name": block.node_name,
        "node_id": block.node_id,
        "cluster_id": block.cluster_id,
        "controller": block.controller,
        "plane": joining.address(block.plane_host, block.plane_port),
        "state": found.state.value if found is not None else "down" if node_agent is None else "starting",
        "since": found.since if found is not None else "",
        "message": f"{found.message} {found.hint}".strip() if found is not None else "",
        "supervisor_pid": supervisor.pid if supervisor is not None else None,
        "node_agent_pid": node_agent.pid if node_agent is not None else None,
        "engines": sum((block.node_dir / "replicas" / item.stem).is_dir() for item in block.shim_dir.glob("*.sock")),
        **_certificate(block, now),
    }


def facts_of(item: Mapping[str, Any]) -> Facts:
    """Return the sheet of `status`."""
    pids = ", ".join(
        f"{name} {item[key] or 'not running'}"
        for name, key in (("supervisor", "supervisor_pid"), ("node agent", "node_agent_pid"))
    )
    state = f"{item['state']}{' since ' + item['since'] if item['since'] else ''}"
    hint = "`slice up` starts it" if item["state"] == "down" else ""
    return Facts(
        facts=(
            ("node", f"{item['node_name']} ({item['node_id']})"),
            ("cluster", str(item["cluster_id"])),
            ("controller", str(item["controller"])),
            ("session", state),
            ("", str(item["message"] or hint or ABSENT)),
            ("data plane", str(item["plane"])),
            ("certificate", str(item["certificate"])),
            ("processes", pids),
            ("engines here", str(item["engines"])),
        )
    )


def _certificate(block: NodeBlock, now: datetime) -> Mapping[str, Any]:
    try:
        own = credentials.load(block.tls_dir)
        holder = own.holder if own is not None else None
    except Failure as failure:
        return {"certificate": failure.message, "certificate_expires_at": None, "is_certificate_valid": False}
    if holder is None:
        return {"certificate": "missing", "certificate_expires_at": None, "is_certificate_valid": False}
    fault = credentials.clock_fault(holder, now)
    left = text_from_seconds((holder.expires_at - now).total_seconds())
    return {
        "certificate": fault or f"valid for {left} more",
        "certificate_expires_at": holder.expires_at.isoformat(timespec="seconds"),
        "is_certificate_valid": not fault,
    }
