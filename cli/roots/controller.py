"""Composition root of the controller: `python -m cli.roots.controller DATA/cluster.json`."""

import resource
import sys

import uvloop

from cli.cluster import recording
from cli.roots.entry import run_part
from controller import process
from core.infra import cluster
from core.infra.clock import SystemClock
from core.infra.cluster import ClusterBlock
from core.infra.entropy import SystemEntropy
from core.infra.logs import Log
from core.infra.version import VERSION


async def work(block: ClusterBlock, log: Log) -> None:
    """Run the controller of `block` until SIGTERM."""
    wanted = recording.loaded_settings(block.data_dir, {}).settings
    config = process.ControllerConfig(
        cluster_id=block.cluster_id,
        database_url=cluster.read_secret(block, "database_url"),
        host=block.host,
        port=block.controller_port,
        control_socket=block.control_socket,
        operator_token=cluster.read_secret(block, "operator_token"),
        node_token=cluster.read_secret(block, "node_token"),
        door_token=cluster.read_secret(block, "door_token"),
        key_pepper=bytes.fromhex(cluster.read_secret(block, "key_pepper")),
        engine_seed=bytes.fromhex(cluster.read_secret(block, "engine_seed")),
        secret_key=bytes.fromhex(cluster.read_secret(block, "secret_key")),
        openai_base_url=block.openai_base_url,
        heartbeat_s=wanted.heartbeat_s,
        drain_timeout_s=wanted.drain_timeout_s,
        cpu_memory_reserve_bytes=wanted.cpu_memory_reserve_bytes,
        disk_pressure_bytes=wanted.disk_pressure_bytes,
        version=VERSION,
        secrets_dir=block.data_dir / "secrets",
        node_host=wanted.node_host,
        node_port=wanted.node_port,
        own_node_id=lambda: cluster.own_node_id(block),
    )
    # A thousand nodes are a thousand connections; a shell's usual soft limit is 1,024 files.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    await process.run(config, clock=SystemClock(), entropy=SystemEntropy(), log=log)


if __name__ == "__main__":
    uvloop.install()
    sys.exit(run_part("controller", sys.argv[1:], work))
