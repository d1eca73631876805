"""Composition root of this machine's node agent: `python -m cli.roots.node_agent FILE`.

FILE is `DATA/cluster.json` on the controller's machine and `DATA/node.json` on one that joined.
"""

import socket
import sys
from dataclasses import replace
from pathlib import Path

from cli.cluster import recording
from cli.roots.entry import run_part_of
from core.infra import cluster, joined
from core.infra.clock import SystemClock
from core.infra.cluster import PORTS, ClusterBlock, MachineBlock
from core.infra.entropy import SystemEntropy
from core.infra.joined import NodeBlock
from core.infra.logs import Log
from core.infra.settings import Settings, process_environment
from core.infra.version import VERSION
from node_agent import agent
from node_agent.agent import NodeConfig, PlaneConfig
from node_agent.files.origins import SourceOrigins


async def work(block: ClusterBlock | NodeBlock, log: Log) -> None:
    """Run the node agent of `block` until SIGTERM."""
    wanted = recording.loaded_settings(block.data_dir, {}).settings
    config = _config(block, wanted)
    if isinstance(block, NodeBlock):
        config = replace(
            config,
            node_name=block.node_name,
            control_target=block.controller,
            cluster_id=block.cluster_id,
            tls_dir=block.tls_dir,
            plane=_plane(block, block.plane_host, wanted),
        )
    else:
        config = replace(
            config,
            control_target=f"unix:{block.control_socket}",
            token=cluster.read_secret(block, "node_token"),
            # Without other machines there is nobody to show a certificate to.
            cluster_id=block.cluster_id if wanted.node_host else "",
            tls_dir=block.tls_dir if wanted.node_host else None,
            plane=_plane(block, wanted.node_host, wanted) if wanted.node_host else None,
        )
    await agent.run(config, clock=SystemClock(), entropy=SystemEntropy(), log=log)


def hostname() -> str:
    """Return the name of this machine's node unless somebody gives another."""
    return socket.gethostname().split(".")[0].lower() or "node"


def _plane(block: MachineBlock, host: str, wanted: Settings) -> PlaneConfig:
    return PlaneConfig(
        host=host,
        port=block.port(PORTS["plane"]),
        tls_dir=block.tls_dir,
        files_socket=block.files_socket,
        peer_bytes_per_s=wanted.peer_bandwidth_bytes_per_s,
    )


def _config(block: MachineBlock, wanted: Settings) -> NodeConfig:
    return NodeConfig(
        node_name=hostname(),
        data_dir=block.node_dir,
        shim_dir=block.shim_dir,
        control_target="",
        token="",
        devices=wanted.devices,
        engine_ports=range(block.port(PORTS["engine_first"]), block.port(PORTS["engine_last"]) + 1),
        engine_start_timeout_s=wanted.engine_start_timeout_s,
        wheel_dir=wanted.wheel_dir,
        container_pull=wanted.container_pull,
        labels={},
        agent_version=VERSION,
        environment=process_environment(),
        origins=SourceOrigins(
            hf_endpoint=wanted.hf_endpoint,
            hf_token_file=wanted.hf_token_file,
            ollama_registry=wanted.ollama_registry,
            source_hosts=wanted.source_hosts,
            room_timeout_s=wanted.pull_room_timeout_s,
        ),
        standing_file=block.standing_file,
    )


def main(argv: list[str]) -> int:
    """Run the node agent of the block recorded in the given file; return its exit code."""
    file = Path(argv[0])
    if file.name == joined.FILE:
        return run_part_of(joined.load(file.parent), "node_agent", work)
    return run_part_of(cluster.load(file.parent), "node_agent", work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
