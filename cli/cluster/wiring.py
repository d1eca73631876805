"""Which parts a cluster on this machine has, and how each is started and probed."""

import json
import signal

from cli.cluster import probe
from cli.cluster.door import DoorPart
from cli.cluster.parts import Part, ProcessPart
from cli.cluster.postgres import EmbeddedPostgres, chosen_binaries, identity
from cli.cluster.programs import environment_of, ours
from core.infra import cluster
from core.infra.cluster import ClusterBlock
from core.infra.settings import Settings
from core.states import NodeState

CONTROLLER_NICE = -10
"""A start takes a second of one processor. Beside engines that want all of them it would last many, in which nothing is
decided; this gives it nine times the share of any one of them, and at rest it uses next to nothing. The other parts
stay as they are: what they start would inherit it."""

POSTGRES_STOP = signal.SIGINT  # fast shutdown, PostgreSQL manual "Shutting Down the Server"


def parts_of(block: ClusterBlock, wanted: Settings) -> list[Part]:
    """Return the parts in the order of their start: what others wait for comes first."""
    environment = environment_of(block)
    parts: list[Part] = []
    database_url = wanted.database_url
    if not database_url:
        server = EmbeddedPostgres(
            data_dir=block.postgres_dir,
            socket_dir=block.postgres_socket_dir,
            binaries=chosen_binaries(),
            run_as=identity(block.data_dir),
        )
        database_url = server.url
        parts.append(
            ProcessPart(
                name="postgres",
                argv=server.argv,
                environment=environment,
                log_file=block.log_dir / "postgres.log",
                parts_dir=block.parts_dir,
                is_ready=server.is_ready,
                user=server.run_as.user,
                before_start=server.initialise,
            )
        )
    cluster.write_private(block.secret_file("database_url"), database_url)
    parts.append(
        ours("controller", block, environment, lambda: controller_is_ready(block), nice=CONTROLLER_NICE),
    )
    parts.append(
        DoorPart(
            block=block,
            config_file=block.file,
            environment=environment,
            is_ready=lambda: door_is_ready(block),
        )
    )
    parts.append(ours("node_agent", block, environment, lambda: node_is_ready(block)))
    return parts


async def controller_is_ready(block: ClusterBlock) -> bool:
    """Return whether the admin API serves."""
    status, _ = await probe.status_of(block.host, block.controller_port, "/health")
    return status == 200


async def door_is_ready(block: ClusterBlock) -> bool:
    """Return whether it is the front door that answers on its port, and no stranger."""
    status, body = await probe.status_of(block.host, block.door_port, "/health")
    return status == 200 and b"table_version" in body


async def node_is_ready(block: ClusterBlock) -> bool:
    """Return whether the heartbeats of this machine's own node reach the controller, whoever else does."""
    own = cluster.own_node_id(block)
    if not own:
        return False
    token = cluster.read_secret(block, "operator_token")
    status, body = await probe.status_of(block.host, block.controller_port, f"/api/v1/nodes/{own}", token=token)
    found = _json(body) if status == 200 else {}
    return (found.get("id"), found.get("state")) == (own, NodeState.READY.value)


def _json(body: bytes) -> dict[str, object]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
