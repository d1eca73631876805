"""Composition root of this machine's node agent: `python -m cli.roots.node_agent DATA/cluster.json`."""

import socket
import sys

from cli.cluster import recording
from cli.roots.entry import run_part
from core.infra import cluster
from core.infra.clock import SystemClock
from core.infra.cluster import PORTS, ClusterBlock
from core.infra.entropy import SystemEntropy
from core.infra.logs import Log
from core.infra.settings import process_environment
from core.infra.version import VERSION
from node_agent import agent
from node_agent.files.origins import SourceOrigins


async def work(block: ClusterBlock, log: Log) -> None:
    """Run the node agent of `block` until SIGTERM."""
    wanted = recording.loaded_settings(block.data_dir, {}).settings
    config = agent.NodeConfig(
        node_name=socket.gethostname().split(".")[0].lower() or "node",
        data_dir=block.node_dir,
        shim_dir=block.shim_dir,
        control_target=f"unix:{block.control_socket}",
        token=cluster.read_secret(block, "node_token"),
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
    )
    await agent.run(config, clock=SystemClock(), entropy=SystemEntropy(), log=log)


if __name__ == "__main__":
    sys.exit(run_part("node_agent", sys.argv[1:], work))
