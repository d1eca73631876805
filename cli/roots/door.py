"""Composition root of the front door: `python -m cli.roots.door DATA/cluster.json`, run under a shim."""

import sys
from pathlib import Path

from cli.cluster import recording
from core.infra import cluster
from core.infra.cluster import PORTS
from core.infra.version import VERSION
from gateway import serve_host


def main(argv: list[str]) -> int:
    """Deploy the front door on a Ray of its own and watch it; return the host program's exit code."""
    block = cluster.load(Path(argv[0]).parent)
    if block is None:
        return 1
    wanted = recording.loaded_settings(block.data_dir, {}).settings
    return serve_host.main(
        serve_host.DoorConfig(
            cluster_id=block.cluster_id,
            door_id_prefix=block.cluster_id,
            host=block.host,
            port=block.door_port,
            replicas=wanted.door_replicas,
            control_target=f"unix:{block.control_socket}",
            token=cluster.read_secret(block, "door_token"),
            key_pepper_hex=cluster.read_secret(block, "key_pepper"),
            table_file=str(block.door_dir / "routes.bin"),
            body_limit_bytes=wanted.door_body_limit_bytes,
            first_byte_timeout_s=wanted.door_first_byte_timeout_s,
            idle_timeout_s=wanted.door_idle_timeout_s,
            ray_dir=str(block.ray_dir),
            ray_token_file=str(block.secret_file("ray_token")),
            ports={name: block.port(offset) for name, offset in PORTS.items()},
            log_dir=str(block.log_dir),
            version=VERSION,
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
