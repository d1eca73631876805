"""The SQL of deployments, replicas and refusals. Called by `controller.deployments` and `controller.reconcile`."""

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

from psycopg import errors as pg
from psycopg.types.json import Jsonb

from controller.deployments.mirror import Change
from controller.deployments.model import Deployment, RefusalRow, Replica
from core.infra import postgres

_DEPLOYMENT = """
SELECT deployment_id, deployment.name, version_id, model.name AS model, version.number AS version, engine,
       engine_version, settings, replicas, generation, spec_generation, footprint, requires, is_enabled,
       disabled_answer, deployment.is_deleting, deployment.created_at, updated_at, runtime, image,
       node_name, secret_name
  FROM controller.deployment JOIN controller.version USING (version_id) JOIN controller.model USING (model_id)
"""
_DEPLOYMENTS = _DEPLOYMENT + " ORDER BY deployment.created_at, deployment_id"
_DEPLOYMENT_BY_NAME = _DEPLOYMENT + " WHERE deployment.name = %(name)s"
_LOCKED = "SELECT 1 FROM controller.deployment WHERE name = %(name)s FOR UPDATE"
_INSERT = """
INSERT INTO controller.deployment
    (deployment_id, name, version_id, engine, engine_version, settings, replicas, footprint, requires, is_enabled,
     disabled_answer, runtime, image, node_name, secret_name)
VALUES (%(deployment_id)s, %(name)s, %(version_id)s, %(engine)s, %(engine_version)s, %(settings)s, %(replicas)s,
        %(footprint)s, %(requires)s, %(is_enabled)s, %(disabled_answer)s, %(runtime)s, %(image)s, %(node_name)s,
        %(secret_name)s)
"""
# All that an operator chose, whatever columns there are for it; the copy begins enabled.
_COPY = """
INSERT INTO controller.deployment
    (deployment_id, name, version_id, engine, engine_version, settings, replicas, footprint, requires, disabled_answer,
     runtime, image, node_name, secret_name)
SELECT %(deployment_id)s, %(name)s, version_id, engine, engine_version, %(settings)s, %(replicas)s, %(footprint)s,
       requires, disabled_answer, runtime, image, node_name, secret_name
  FROM controller.deployment WHERE deployment_id = %(source_id)s
"""
_UPDATE = """
UPDATE controller.deployment
   SET version_id = %(version_id)s, engine_version = %(engine_version)s, replicas = %(replicas)s,
       settings = %(settings)s, footprint = %(footprint)s, requires = %(requires)s, is_enabled = %(is_enabled)s,
       disabled_answer = %(disabled_answer)s, node_name = %(node_name)s, generation = generation + 1,
       spec_generation = CASE WHEN %(is_new_spec)s THEN generation + 1 ELSE spec_generation END, updated_at = now()
 WHERE deployment_id = %(deployment_id)s AND generation = %(generation)s AND NOT is_deleting
"""
# A program that runs elsewhere, or in an image, has the version that it has.
_RUN_ENGINE_VERSION = """
UPDATE controller.deployment
   SET engine_version = %(version)s, generation = generation + 1, spec_generation = generation + 1, updated_at = now()
 WHERE engine = %(engine)s AND engine_version <> %(version)s AND runtime = 'process' AND NOT is_deleting
   AND CASE WHEN %(is_named)s THEN name = ANY (%(names)s) ELSE engine_version = ANY (%(instead_of)s) END
RETURNING name
"""
_MARK_DELETING = """
UPDATE controller.deployment SET is_deleting = true, generation = generation + 1, updated_at = now()
 WHERE deployment_id = %(deployment_id)s AND NOT is_deleting
"""
_REPLICA = """
SELECT replica_id, deployment_id, version.version_id, version.number AS version, replica.spec_generation, node_id,
       replica.engine, replica.engine_version, replica.settings, promises, state, desired, incarnation, restarts, pid,
       host, port, load_s, code, message, log_tail, replica.created_at, state_since, drain_since,
       base_url, replica.runtime, replica.image, is_leaving, move_to, succeeds, stuck,
       move_since, move_failure
  FROM controller.replica JOIN controller.deployment USING (deployment_id)
  JOIN controller.version ON version.version_id = coalesce(replica.version_id, deployment.version_id)
"""
_REPLICAS = _REPLICA + " ORDER BY replica.created_at, replica_id"
_REPLICAS_OF_NODE = _REPLICA + " WHERE node_id = %(node_id)s ORDER BY replica_id"
_MIRROR = """
UPDATE controller.replica
   SET state = %(state)s, incarnation = %(incarnation)s, restarts = %(restarts)s, pid = %(pid)s, host = %(host)s,
       port = %(port)s, base_url = %(base_url)s, load_s = %(load_s)s, code = %(code)s, message = %(message)s,
       log_tail = %(log_tail)s,
       state_since = CASE WHEN state = %(state)s AND incarnation = %(incarnation)s THEN state_since ELSE now() END
 WHERE replica_id = %(replica_id)s
"""
_TRANSITION = """
INSERT INTO controller.replica_event (replica_id, from_state, to_state, incarnation, code, message)
VALUES (%(replica_id)s, %(from_state)s, %(to_state)s, %(incarnation)s, %(code)s, %(message)s)
"""
_REFUSALS = "SELECT deployment_id, code, message, hint, nodes, cured_by FROM controller.refusal ORDER BY deployment_id"


async def deployments(connection: postgres.Connection) -> list[Deployment]:
    """Return every deployment, oldest first."""
    return await postgres.fetch_all(connection, Deployment, _DEPLOYMENTS)


async def deployment(connection: postgres.Connection, name: str, *, is_locked: bool = False) -> Deployment | None:
    """Return one deployment; `is_locked` holds its row until the transaction ends."""
    if is_locked:
        await connection.execute(_LOCKED, {"name": name})
    return await postgres.fetch_one(connection, Deployment, _DEPLOYMENT_BY_NAME, {"name": name})


async def insert(connection: postgres.Connection, row: Mapping[str, Any]) -> bool:
    """Make a deployment; return False when its name is taken."""
    return await _inserted(connection, _INSERT, _json(row))


async def insert_copy(connection: postgres.Connection, row: Mapping[str, Any]) -> bool:
    """Make a deployment like the one with the id `source_id`; return False when its name is taken."""
    return await _inserted(connection, _COPY, _json(row))


async def _inserted(connection: postgres.Connection, query: LiteralString, row: postgres.Params) -> bool:
    try:
        async with connection.transaction():
            await postgres.execute(connection, query, row)
    except pg.UniqueViolation:
        return False
    return True


def _json(row: Mapping[str, Any]) -> postgres.Params:
    columns = ("settings", "footprint", "requires")
    return {**row, **{name: Jsonb(row[name]) for name in columns if name in row}}


async def update(
    connection: postgres.Connection, current: Deployment, row: Mapping[str, Any], *, is_new_spec: bool
) -> bool:
    """Change a deployment that is still at `current.generation`; return False when it has moved on."""
    guard = {
        "deployment_id": current.deployment_id,
        "generation": current.generation,
        "is_new_spec": is_new_spec,
    }
    return bool(await postgres.execute(connection, _UPDATE, {**_json(row), **guard}))


async def run_engine_version(
    connection: postgres.Connection,
    engine: str,
    version: str,
    *,
    instead_of: frozenset[str],
    names: Sequence[str] | None,
) -> tuple[str, ...]:
    """Let deployments run another version of their engine; return the names of those that changed."""
    row = {
        "engine": engine,
        "version": version,
        "is_named": names is not None,
        "names": list(names or ()),
        "instead_of": sorted(instead_of),
    }
    rows = await (await connection.execute(_RUN_ENGINE_VERSION, row)).fetchall()
    return tuple(sorted(str(found[0]) for found in rows))


async def mark_deleting(connection: postgres.Connection, deployment_id: str) -> bool:
    """Begin to delete a deployment; return False when that had begun."""
    return bool(await postgres.execute(connection, _MARK_DELETING, {"deployment_id": deployment_id}))


async def replicas(connection: postgres.Connection) -> list[Replica]:
    """Return every replica, oldest first."""
    return await postgres.fetch_all(connection, Replica, _REPLICAS)


async def replicas_of_node(connection: postgres.Connection, node_id: str) -> list[Replica]:
    """Return the replicas placed on one node."""
    return await postgres.fetch_all(connection, Replica, _REPLICAS_OF_NODE, {"node_id": node_id})


async def mirror(connection: postgres.Connection, before: Replica, change: Change) -> None:
    """Write what a node says of a replica, and its transition when the state moved."""
    row = {
        "replica_id": before.replica_id,
        "state": change.state.value,
        "incarnation": change.incarnation,
        "restarts": change.restarts,
        "pid": change.pid,
        "host": change.host,
        "port": change.port,
        "base_url": change.base_url,
        "load_s": change.load_s,
        "code": change.code,
        "message": change.message,
        "log_tail": Jsonb(list(change.log_tail)),
    }
    await postgres.execute(connection, _MIRROR, row)
    if before.state != change.state.value:
        transition = {
            "replica_id": before.replica_id,
            "from_state": before.state,
            "to_state": change.state.value,
            "incarnation": change.incarnation,
            "code": change.code,
            "message": change.message,
        }
        await postgres.execute(connection, _TRANSITION, transition)


async def refusals(connection: postgres.Connection) -> list[RefusalRow]:
    """Return why deployments have fewer replicas than they want."""
    return await postgres.fetch_all(connection, RefusalRow, _REFUSALS)
