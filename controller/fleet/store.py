"""The fleet's SQL: nodes and their devices. Called by `controller.fleet.service` and `controller.reconcile`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from psycopg import errors as pg
from psycopg.types.json import Jsonb

from controller.exchange import EngineFact
from controller.fleet.model import DeviceRow, Hello, NodeRow
from core.devices import DeviceReading
from core.infra import postgres
from core.names import NAME_PATTERN

_NODE = """
SELECT node_id, name, machine_id, boot_id, agent_version, hostname, system, machine, cpu_count, memory_bytes,
       disk_total_bytes, labels || given_labels AS labels, engines, state, is_cordoned, session_epoch, generation,
       desired_digest, created_at, plane_host, plane_port, is_approved, joined_at,
       drain_since, is_drain_forced
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
# Held in one order: whoever writes several nodes does, so that none of them wait for each other in a circle.
_GREET = """
WITH said AS (
    SELECT * FROM jsonb_to_recordset(%(said)s) AS one(node_id text, machine_id text, boot_id text, agent_version text,
        hostname text, system text, machine text, cpu_count integer, memory_bytes bigint, disk_total_bytes bigint,
        labels jsonb, engines jsonb, plane_host text, plane_port integer)),
held AS (
    SELECT node.node_id FROM controller.node JOIN said USING (node_id) WHERE node.joined_at IS NOT NULL
     ORDER BY node.node_id FOR NO KEY UPDATE OF node)
UPDATE controller.node SET
    machine_id = said.machine_id, boot_id = said.boot_id, agent_version = said.agent_version,
    hostname = said.hostname, system = said.system, machine = said.machine, cpu_count = said.cpu_count,
    memory_bytes = said.memory_bytes, disk_total_bytes = said.disk_total_bytes, labels = said.labels,
    engines = said.engines, plane_host = said.plane_host, plane_port = said.plane_port,
    session_epoch = node.session_epoch + 1, session_at = now()
  FROM said JOIN held USING (node_id)
 WHERE node.node_id = said.node_id
RETURNING node.node_id, name, node.machine_id, node.boot_id, node.agent_version, node.hostname, node.system,
    node.machine, node.cpu_count, node.memory_bytes, node.disk_total_bytes, node.labels || given_labels AS labels,
    node.engines, state, is_cordoned, session_epoch, generation, desired_digest, created_at, node.plane_host,
    node.plane_port, is_approved, joined_at, drain_since, is_drain_forced
"""
_FORGET_OTHER_DEVICES = """
WITH said AS (SELECT * FROM jsonb_to_recordset(%(devices)s) AS one(node_id text, device_id text))
DELETE FROM controller.device WHERE node_id = ANY(%(node_ids)s)
   AND NOT EXISTS (SELECT 1 FROM said WHERE said.node_id = device.node_id AND said.device_id = device.device_id)
"""
# What is as before is not touched: a storm of hellos after a restart writes no device at all.
_PUT_DEVICES = """
WITH said AS (
    SELECT * FROM jsonb_to_recordset(%(devices)s) AS one(node_id text, device_id text, kind text, name text,
        total_bytes bigint, is_simulated boolean))
INSERT INTO controller.device (node_id, device_id, kind, name, total_bytes, is_simulated)
SELECT DISTINCT ON (node_id, device_id) node_id, device_id, kind, name, total_bytes, is_simulated FROM said
 WHERE NOT EXISTS (
    SELECT 1 FROM controller.device AS known
     WHERE (known.node_id, known.device_id, known.kind, known.name, known.total_bytes, known.is_simulated)
         = (said.node_id, said.device_id, said.kind, said.name, said.total_bytes, said.is_simulated))
 ORDER BY node_id, device_id
ON CONFLICT (node_id, device_id) DO UPDATE SET kind = excluded.kind, name = excluded.name,
    total_bytes = excluded.total_bytes, is_simulated = excluded.is_simulated
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
WITH held AS (
    SELECT node_id, one.generation, one.digest
      FROM jsonb_to_recordset(%(sets)s) AS one(node_id text, generation bigint, digest text)
      JOIN controller.node USING (node_id) WHERE node.generation < one.generation
     ORDER BY node_id FOR NO KEY UPDATE OF node)
UPDATE controller.node SET generation = held.generation, desired_digest = held.digest
  FROM held WHERE node.node_id = held.node_id
RETURNING node.node_id
"""
_HELD = """
SELECT node_id, state, generation, is_approved FROM controller.node WHERE node_id = ANY(%(node_ids)s)
 ORDER BY node_id FOR NO KEY UPDATE
"""


@dataclass(frozen=True, kw_only=True)
class HeldNode:
    """What is asked of a node's row while it is held."""

    node_id: str
    state: str
    generation: int
    is_approved: bool


@dataclass(frozen=True, kw_only=True)
class _NodeId:
    node_id: str


async def nodes(connection: postgres.Connection) -> list[NodeRow]:
    """Return every node, by name."""
    return await postgres.fetch_all(connection, NodeRow, _NODES)


async def node(connection: postgres.Connection, node_id: str) -> NodeRow | None:
    """Return one node."""
    return await postgres.fetch_one(connection, NodeRow, _NODE_BY_ID, {"node_id": node_id})


async def devices(connection: postgres.Connection) -> list[DeviceRow]:
    """Return every device of every node."""
    return await postgres.fetch_all(connection, DeviceRow, _DEVICES)


async def greet(connection: postgres.Connection, hellos: Sequence[Hello]) -> list[NodeRow]:
    """Write what joined nodes say of themselves, each node once, and count their sessions; return their rows.

    A node without a row, or one that has not joined, has none afterwards either: it is not among what is returned.
    """
    said = [
        {name: value.obj if isinstance(value, Jsonb) else value for name, value in _row(hello, "").items()}
        for hello in hellos
    ]
    rows = await postgres.fetch_all(connection, NodeRow, _GREET, {"said": Jsonb(said)})
    written = {row.node_id for row in rows}
    devices = [
        _device(hello, device) for hello in hellos if hello.node_id in written for device in hello.inventory.devices
    ]
    values = {"node_ids": sorted(written), "devices": Jsonb(devices)}
    await postgres.execute(connection, _FORGET_OTHER_DEVICES, values)
    await postgres.execute(connection, _PUT_DEVICES, values)
    return rows


async def held(connection: postgres.Connection, node_ids: Iterable[str]) -> dict[str, HeldNode]:
    """Hold the rows of several nodes for the transaction and return what of them an observation is judged by."""
    rows = await postgres.fetch_all(connection, HeldNode, _HELD, {"node_ids": sorted(node_ids)})
    return {row.node_id: row for row in rows}


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
        await postgres.execute(connection, _INSERT_DEVICE, _device(hello, device))
    found = await node(connection, hello.node_id)
    assert found is not None, "written in this transaction"
    return found


def node_name(text: str) -> str:
    """Return `text` as a node's name: lower case, other characters as '-', never empty."""
    cleaned = re.sub(r"[^a-z0-9._-]", "-", text.lower())[:63].strip("._-")
    return cleaned if NAME_PATTERN.match(cleaned) else "node"


def _device(hello: Hello, device: DeviceReading) -> dict[str, object]:
    return {
        "node_id": hello.node_id,
        "device_id": device.device_id,
        "kind": device.kind.value,
        "name": device.name,
        "total_bytes": device.total_bytes,
        "is_simulated": device.is_simulated,
    }


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


async def set_desired(connection: postgres.Connection, sets: Mapping[str, tuple[int, str]]) -> frozenset[str]:
    """Record the generation and the digest of the desired sets of nodes; return those whose number was below it."""
    given = [
        {"node_id": node_id, "generation": generation, "digest": digest}
        for node_id, (generation, digest) in sets.items()
    ]
    rows = await postgres.fetch_all(connection, _NodeId, _SET_DESIRED, {"sets": Jsonb(given)})
    return frozenset(row.node_id for row in rows)
