"""The fleet's SQL: nodes and their devices. Called by `controller.fleet.service` and `controller.reconcile`."""

import re
from dataclasses import asdict

from psycopg import errors as pg
from psycopg.types.json import Jsonb

from controller.exchange import EngineFact
from controller.fleet.model import DeviceRow, Hello, NodeRow
from core.infra import postgres
from core.names import NAME_PATTERN

_NODE = """
SELECT node_id, name, machine_id, boot_id, agent_version, hostname, system, machine, cpu_count, memory_bytes,
       disk_total_bytes, labels || given_labels AS labels, engines, state, is_cordoned, session_epoch, generation,
       desired_digest, created_at, is_approved, joined_at,
       plane_host, plane_port
  FROM controller.node
"""
_NODES = _NODE + " ORDER BY name"
_NODE_BY_ID = _NODE + " WHERE node_id = %(node_id)s"
_DEVICES = "SELECT node_id, device_id, kind, name, total_bytes, is_simulated FROM controller.device ORDER BY device_id"
_UPSERT = """
INSERT INTO controller.node (node_id, name, machine_id, boot_id, agent_version, hostname, system, machine, cpu_count,
    memory_bytes, disk_total_bytes, labels, engines, plane_host, plane_port, state, session_epoch)
VALUES (%(node_id)s, %(name)s, %(machine_id)s, %(boot_id)s, %(agent_version)s, %(hostname)s, %(system)s, %(machine)s,
    %(cpu_count)s, %(memory_bytes)s, %(disk_total_bytes)s, %(labels)s, %(engines)s, %(plane_host)s, %(plane_port)s,
    'suspect', 1)
ON CONFLICT (node_id) DO UPDATE SET
    -- Who joined has the name that it joined with, whatever it says of itself.
    name = CASE WHEN node.joined_at IS NULL THEN excluded.name ELSE node.name END,
    machine_id = excluded.machine_id, boot_id = excluded.boot_id,
    agent_version = excluded.agent_version, hostname = excluded.hostname, system = excluded.system,
    machine = excluded.machine, cpu_count = excluded.cpu_count, memory_bytes = excluded.memory_bytes,
    disk_total_bytes = excluded.disk_total_bytes, labels = excluded.labels, engines = excluded.engines,
    plane_host = excluded.plane_host, plane_port = excluded.plane_port,
    session_epoch = node.session_epoch + 1, session_at = now()
"""
_FORGET_DEVICES = "DELETE FROM controller.device WHERE node_id = %(node_id)s"
_INSERT_DEVICE = """
INSERT INTO controller.device (node_id, device_id, kind, name, total_bytes, is_simulated)
VALUES (%(node_id)s, %(device_id)s, %(kind)s, %(name)s, %(total_bytes)s, %(is_simulated)s) ON CONFLICT DO NOTHING
"""
_SET_STATE = "UPDATE controller.node SET state = %(state)s WHERE node_id = %(node_id)s AND state <> %(state)s"
_SET_ENGINES = """
UPDATE controller.node SET engines = %(engines)s WHERE node_id = %(node_id)s AND engines <> %(engines)s
"""
_SET_DESIRED = """
UPDATE controller.node SET generation = %(generation)s, desired_digest = %(digest)s
 WHERE node_id = %(node_id)s AND generation < %(generation)s
"""


async def nodes(connection: postgres.Connection) -> list[NodeRow]:
    """Return every node, by name."""
    return await postgres.fetch_all(connection, NodeRow, _NODES)


async def node(connection: postgres.Connection, node_id: str) -> NodeRow | None:
    """Return one node."""
    return await postgres.fetch_one(connection, NodeRow, _NODE_BY_ID, {"node_id": node_id})


async def devices(connection: postgres.Connection) -> list[DeviceRow]:
    """Return every device of every node."""
    return await postgres.fetch_all(connection, DeviceRow, _DEVICES)


async def upsert(connection: postgres.Connection, hello: Hello) -> NodeRow:
    """Write what a node says of itself and count its session; a name that another node has gets a suffix."""
    name = node_name(hello.node_name)
    suffixed = f"{name[:56]}-{hello.node_id[-4:].lower()}"
    for candidate in (name, suffixed):
        try:
            async with connection.transaction():
                await postgres.execute(connection, _UPSERT, _row(hello, candidate))
            break
        except pg.UniqueViolation:
            if candidate == suffixed:
                raise
    await postgres.execute(connection, _FORGET_DEVICES, {"node_id": hello.node_id})
    for device in hello.inventory.devices:
        row = {
            "node_id": hello.node_id,
            "device_id": device.device_id,
            "kind": device.kind.value,
            "name": device.name,
            "total_bytes": device.total_bytes,
            "is_simulated": device.is_simulated,
        }
        await postgres.execute(connection, _INSERT_DEVICE, row)
    found = await node(connection, hello.node_id)
    assert found is not None, "written in this transaction"
    return found


def node_name(text: str) -> str:
    """Return `text` as a node's name: lower case, other characters as '-', never empty."""
    cleaned = re.sub(r"[^a-z0-9._-]", "-", text.lower())[:63].strip("._-")
    return cleaned if NAME_PATTERN.match(cleaned) else "node"


def _row(hello: Hello, name: str) -> dict[str, object]:
    facts = hello.inventory
    return {
        "node_id": hello.node_id,
        "name": name,
        "machine_id": hello.machine_id,
        "boot_id": hello.boot_id,
        "agent_version": hello.agent_version,
        "hostname": facts.hostname,
        "system": facts.system,
        "machine": facts.machine,
        "cpu_count": facts.cpu_count,
        "memory_bytes": facts.memory_bytes,
        "disk_total_bytes": facts.disk_total_bytes,
        "labels": Jsonb(dict(hello.labels)),
        "engines": _engines(facts.engines),
        "plane_host": hello.plane_host,
        "plane_port": hello.plane_port,
    }


def _engines(facts: tuple[EngineFact, ...]) -> Jsonb:
    return Jsonb([asdict(engine) for engine in facts])


async def set_engines(connection: postgres.Connection, node_id: str, facts: tuple[EngineFact, ...]) -> bool:
    """Record which engines a node can run and has installed; return whether that is news."""
    return bool(await postgres.execute(connection, _SET_ENGINES, {"node_id": node_id, "engines": _engines(facts)}))


async def set_state(connection: postgres.Connection, node_id: str, state: str) -> bool:
    """Record a node's state; return whether it is another than before."""
    return bool(await postgres.execute(connection, _SET_STATE, {"node_id": node_id, "state": state}))


async def set_desired(connection: postgres.Connection, node_id: str, generation: int, digest: str) -> bool:
    """Record that the desired set `digest` is generation `generation`; return False when that is not above the last."""
    row = {"node_id": node_id, "generation": generation, "digest": digest}
    return bool(await postgres.execute(connection, _SET_DESIRED, row))
