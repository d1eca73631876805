"""The SQL of decisions. Called by `controller.reconcile.commit` alone, in its one transaction."""

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from core.infra import postgres

_HOLD = """
SELECT 1 FROM controller.deployment
 WHERE deployment_id = %(deployment_id)s AND generation = %(generation)s FOR SHARE
"""
_START = """
INSERT INTO controller.replica
    (replica_id, deployment_id, version_id, spec_generation, node_id, engine, engine_version, settings, promises,
     runtime, image)
SELECT %(replica_id)s, deployment_id, version_id, spec_generation, %(node_id)s, engine, engine_version, settings,
       %(promises)s, runtime, image
  FROM controller.deployment
 WHERE deployment_id = %(deployment_id)s AND spec_generation = %(spec_generation)s AND NOT is_deleting
"""
_WISH = """
UPDATE controller.replica SET desired = %(desired)s, drain_since = coalesce(drain_since, now())
 WHERE replica_id = %(replica_id)s AND desired = %(before)s
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


async def start(connection: postgres.Connection, row: Mapping[str, Any]) -> bool:
    """Make a replica; return False when the deployment is no longer at that generation."""
    return bool(await postgres.execute(connection, _START, {**row, "promises": Jsonb(row["promises"])}))


async def wish(connection: postgres.Connection, replica_id: str, before: str, desired: str) -> bool:
    """Move what is wanted of a replica from `before` to `desired`."""
    row = {"replica_id": replica_id, "before": before, "desired": desired}
    return bool(await postgres.execute(connection, _WISH, row))


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
