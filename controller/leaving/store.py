"""The SQL of cordons, drains, moves and forgotten nodes. Called by `controller.leaving.service` alone.

Locks are taken on the node first and then on its replicas, as the reconcile loop's commit does, which holds a node
while it places on it: what it places before a drain is marked by the drain, what comes after finds the node cordoned.
"""

from dataclasses import dataclass
from datetime import datetime

from core.infra import postgres

_NODE = """
SELECT node_id, name, is_cordoned, drain_since, created_at FROM controller.node
 WHERE name = %(word)s OR node_id = %(word)s ORDER BY name = %(word)s DESC LIMIT 1 FOR NO KEY UPDATE
"""
_NODE_OF = """
SELECT node_id, name, is_cordoned, drain_since, created_at FROM controller.node
 WHERE node_id = %(node_id)s FOR NO KEY UPDATE
"""
_NODE_NAMES = "SELECT name FROM controller.node ORDER BY name"
_CORDON = "UPDATE controller.node SET is_cordoned = true WHERE node_id = %(node_id)s AND NOT is_cordoned"
_UNCORDON = """
UPDATE controller.node SET is_cordoned = false, drain_since = NULL, is_drain_forced = false
 WHERE node_id = %(node_id)s AND is_cordoned
"""
_DRAIN = """
UPDATE controller.node
   SET is_cordoned = true, drain_since = coalesce(drain_since, now()),
       is_drain_forced = is_drain_forced OR %(is_forced)s
 WHERE node_id = %(node_id)s AND (drain_since IS NULL OR is_drain_forced < %(is_forced)s)
"""
_MARK = """
UPDATE controller.replica SET is_leaving = true
 WHERE node_id = %(node_id)s AND desired = 'run' AND NOT is_leaving
"""
# What moves on an operator's word goes on moving.
_UNMARK = """
UPDATE controller.replica SET is_leaving = false, stuck = '{}'
 WHERE node_id = %(node_id)s AND desired = 'run' AND is_leaving AND move_to IS NULL
"""
_HELD = "SELECT count(*) FROM controller.replica WHERE node_id = %(node_id)s"
_REPLICA = """
SELECT replica_id, deployment.name AS deployment, replica.spec_generation = deployment.spec_generation AS is_current,
       replica.node_id, desired, is_leaving, move_to
  FROM controller.replica JOIN controller.deployment USING (deployment_id)
 WHERE replica_id = %(replica_id)s FOR NO KEY UPDATE OF replica
"""
_MOVE = """
UPDATE controller.replica
   SET is_leaving = true, move_to = %(move_to)s, move_since = now(), move_failure = '{}', stuck = '{}'
 WHERE replica_id = %(replica_id)s AND move_to IS DISTINCT FROM %(move_to)s
"""
# On a node that drains it still is to leave, only not for that node.
_STAY = """
UPDATE controller.replica SET move_to = NULL, move_since = NULL, stuck = '{}',
       is_leaving = EXISTS (SELECT 1 FROM controller.node WHERE node.node_id = replica.node_id
                                                           AND drain_since IS NOT NULL)
 WHERE replica_id = %(replica_id)s
"""
_STAY_FROM = """
UPDATE controller.replica SET move_to = NULL, move_since = NULL, stuck = '{}',
       is_leaving = EXISTS (SELECT 1 FROM controller.node WHERE node.node_id = replica.node_id
                                                           AND drain_since IS NOT NULL)
 WHERE move_to = %(node_id)s
"""
_FORGET_EVENTS = """
INSERT INTO controller.replica_event (replica_id, from_state, to_state, incarnation, message)
SELECT replica_id, state, 'stopped', incarnation, 'its node was forgotten'
  FROM controller.replica WHERE node_id = %(node_id)s
"""
_FORGET_REPLICAS = "DELETE FROM controller.replica WHERE node_id = %(node_id)s RETURNING replica_id"
_FORGET_NODE = "DELETE FROM controller.node WHERE node_id = %(node_id)s"
_EXPIRIES = """
SELECT subject AS node_id, max(expires_at) AS expires_at FROM controller.certificate
 WHERE role = 'node' AND revoked_at IS NULL GROUP BY subject
"""


@dataclass(frozen=True, kw_only=True)
class HeldNode:
    """One node's row, held for the transaction; `created_at` tells it from one that joins later under its id."""

    node_id: str
    name: str
    is_cordoned: bool
    drain_since: datetime | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class HeldReplica:
    """One replica's row, held for the transaction; `is_current` when it is of its deployment's newest generation."""

    replica_id: str
    deployment: str
    is_current: bool
    node_id: str
    desired: str
    is_leaving: bool
    move_to: str | None


@dataclass(frozen=True, kw_only=True)
class Expiry:
    """When the newest certificate of a node ends."""

    node_id: str
    expires_at: datetime


async def node(connection: postgres.Connection, word: str) -> HeldNode | None:
    """Return the node with this name, or else this id, and hold its row."""
    return await postgres.fetch_one(connection, HeldNode, _NODE, {"word": word})


async def node_of(connection: postgres.Connection, node_id: str) -> HeldNode | None:
    """Return the node with this id, whatever others are called, and hold its row."""
    return await postgres.fetch_one(connection, HeldNode, _NODE_OF, {"node_id": node_id})


async def node_names(connection: postgres.Connection) -> list[str]:
    """Return the name of every node."""
    return [str(row[0]) for row in await (await connection.execute(_NODE_NAMES)).fetchall()]


async def cordon(connection: postgres.Connection, node_id: str) -> bool:
    """Let a node get no more replicas; return False when that was so."""
    return bool(await postgres.execute(connection, _CORDON, {"node_id": node_id}))


async def uncordon(connection: postgres.Connection, node_id: str) -> bool:
    """Let a node get replicas again and end its drain; return False when neither was on."""
    is_changed = bool(await postgres.execute(connection, _UNCORDON, {"node_id": node_id}))
    if is_changed:
        await postgres.execute(connection, _UNMARK, {"node_id": node_id})
    return is_changed


async def drain(connection: postgres.Connection, node_id: str, *, is_forced: bool) -> bool:
    """Cordon a node and mark what it holds as leaving; return False when that was so."""
    is_changed = bool(await postgres.execute(connection, _DRAIN, {"node_id": node_id, "is_forced": is_forced}))
    return bool(await postgres.execute(connection, _MARK, {"node_id": node_id})) or is_changed


async def held(connection: postgres.Connection, node_id: str) -> int:
    """Return how many replicas a node holds."""
    row = await (await connection.execute(_HELD, {"node_id": node_id})).fetchone()
    return int(row[0]) if row else 0


async def replica(connection: postgres.Connection, replica_id: str) -> HeldReplica | None:
    """Return one replica and hold its row."""
    return await postgres.fetch_one(connection, HeldReplica, _REPLICA, {"replica_id": replica_id})


async def move(connection: postgres.Connection, replica_id: str, node_id: str) -> bool:
    """Mark a replica as leaving for one node; return False when it was."""
    return bool(await postgres.execute(connection, _MOVE, {"replica_id": replica_id, "move_to": node_id}))


async def stay(connection: postgres.Connection, replica_id: str) -> None:
    """End a replica's move."""
    await postgres.execute(connection, _STAY, {"replica_id": replica_id})


async def forget(connection: postgres.Connection, node_id: str) -> tuple[str, ...]:
    """Delete all that is known of a node; return the replicas that went with it."""
    row = {"node_id": node_id}
    await postgres.execute(connection, _FORGET_EVENTS, row)
    gone = await (await connection.execute(_FORGET_REPLICAS, row)).fetchall()
    await postgres.execute(connection, _STAY_FROM, row)
    await postgres.execute(connection, _FORGET_NODE, row)
    return tuple(sorted(str(found[0]) for found in gone))


async def expiries(connection: postgres.Connection) -> list[Expiry]:
    """Return when each node's newest certificate ends."""
    return await postgres.fetch_all(connection, Expiry, _EXPIRIES)
