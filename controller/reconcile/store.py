"""The SQL of decisions. Called by `controller.reconcile.commit` alone, in its one transaction."""

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from controller.deployments.model import Replica
from core.infra import postgres

_HOLD = """
SELECT 1 FROM controller.deployment
 WHERE deployment_id = %(deployment_id)s AND generation = %(generation)s FOR SHARE
"""
# Held, so that a cordon or a drain comes before it or sees what is placed.
_HOLD_NODE = "SELECT 1 FROM controller.node WHERE node_id = %(node_id)s AND NOT is_cordoned FOR SHARE"
_START = """
INSERT INTO controller.replica
    (replica_id, deployment_id, version_id, spec_generation, node_id, engine, engine_version, settings, promises,
     runtime, image, succeeds)
SELECT %(replica_id)s, deployment_id, version_id, spec_generation, %(node_id)s, engine, engine_version, settings,
       %(promises)s, runtime, image, (SELECT replica_id FROM controller.replica WHERE replica_id = %(succeeds)s)
  FROM controller.deployment
 WHERE deployment_id = %(deployment_id)s AND spec_generation = %(spec_generation)s AND NOT is_deleting
"""
_WISH = """
UPDATE controller.replica SET desired = %(desired)s, drain_since = coalesce(drain_since, now())
 WHERE replica_id = %(replica_id)s AND desired = %(before)s AND is_leaving = %(is_leaving)s
"""
_STICK = """
UPDATE controller.replica SET stuck = %(stuck)s WHERE replica_id = %(replica_id)s AND is_leaving AND desired = 'run'
"""
# As when an operator ends a move: on a node that drains it still is to leave, only not for that node.
_GIVE_UP = """
UPDATE controller.replica SET move_to = NULL, move_since = NULL, stuck = '{}', move_failure = %(failure)s,
       is_leaving = EXISTS (SELECT 1 FROM controller.node WHERE node.node_id = replica.node_id
                                                           AND drain_since IS NOT NULL)
 WHERE replica_id = %(replica_id)s AND move_to = %(move_to)s AND desired = 'run'
"""
_GONE_EVENT = """
INSERT INTO controller.replica_event (replica_id, from_state, to_state, incarnation, message)
SELECT replica_id, state, 'stopped', incarnation, 'forgotten' FROM controller.replica WHERE replica_id = %(replica_id)s
"""
_GONE = "DELETE FROM controller.replica WHERE replica_id = %(replica_id)s AND desired = 'stop'"
_END = "DELETE FROM controller.deployment WHERE deployment_id = %(deployment_id)s AND is_deleting"
_REFUSE = """
INSERT INTO controller.refusal (deployment_id, code, message, hint, nodes, cured_by)
VALUES (%(deployment_id)s, %(code)s, %(message)s, %(hint)s, %(nodes)s, %(cured_by)s)
ON CONFLICT (deployment_id) DO UPDATE SET code = excluded.code, message = excluded.message, hint = excluded.hint,
    nodes = excluded.nodes, cured_by = excluded.cured_by,
    since = CASE WHEN refusal.code = excluded.code THEN refusal.since ELSE now() END
"""
_CURE = "DELETE FROM controller.refusal WHERE deployment_id = %(deployment_id)s"


async def hold(connection: postgres.Connection, deployment_id: str, generation: int) -> bool:
    """Hold a deployment's row for the transaction; return False when it has moved on from `generation`."""
    cursor = await connection.execute(_HOLD, {"deployment_id": deployment_id, "generation": generation})
    return await cursor.fetchone() is not None


async def hold_node(connection: postgres.Connection, node_id: str) -> bool:
    """Hold a node's row for the transaction; return False when it takes no replicas now, or is no more."""
    return await (await connection.execute(_HOLD_NODE, {"node_id": node_id})).fetchone() is not None


async def start(connection: postgres.Connection, row: Mapping[str, Any]) -> bool:
    """Make a replica; return False when the deployment is no longer at that generation."""
    return bool(await postgres.execute(connection, _START, {**row, "promises": Jsonb(row["promises"])}))


async def wish(connection: postgres.Connection, before: Replica, desired: str) -> bool:
    """Move what is wanted of a replica to `desired`; return False when that has changed, or whether it is to leave."""
    row = {
        "replica_id": before.replica_id,
        "before": before.desired,
        "is_leaving": before.is_leaving,
        "desired": desired,
    }
    return bool(await postgres.execute(connection, _WISH, row))


async def stick(connection: postgres.Connection, replica_id: str, stuck: Mapping[str, Any]) -> bool:
    """Write why nothing can take a leaving replica's place, or with nothing in `stuck` that something can."""
    row = {"replica_id": replica_id, "stuck": Jsonb(stuck)}
    return bool(await postgres.execute(connection, _STICK, row))


async def give_up(connection: postgres.Connection, before: Replica, failure: Mapping[str, Any]) -> bool:
    """End a replica's move because of `failure`; return False when it no longer moves to that node."""
    row = {"replica_id": before.replica_id, "move_to": before.move_to, "failure": Jsonb(failure)}
    return bool(await postgres.execute(connection, _GIVE_UP, row))


async def forget(connection: postgres.Connection, replica_id: str) -> bool:
    """Delete the row of a replica that has stopped."""
    await postgres.execute(connection, _GONE_EVENT, {"replica_id": replica_id})
    return bool(await postgres.execute(connection, _GONE, {"replica_id": replica_id}))


async def end(connection: postgres.Connection, deployment_id: str) -> bool:
    """Delete a deployment without replicas."""
    return bool(await postgres.execute(connection, _END, {"deployment_id": deployment_id}))


async def refuse(connection: postgres.Connection, row: Mapping[str, Any]) -> None:
    """Write why a deployment has fewer replicas than it wants."""
    values = {**row, "nodes": Jsonb(row["nodes"]), "cured_by": Jsonb(row["cured_by"])}
    await postgres.execute(connection, _REFUSE, values)


async def cure(connection: postgres.Connection, deployment_id: str) -> None:
    """Delete a refusal that no longer holds."""
    await postgres.execute(connection, _CURE, {"deployment_id": deployment_id})
