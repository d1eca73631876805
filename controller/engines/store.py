"""The SQL of engine installations. Called by `controller.engines` and, to read, by `controller.reconcile`."""

from collections.abc import Sequence

from controller.engines.model import EngineDefault, EngineWant, NodeInstall, NodeName, Pin, Use
from core.infra import postgres

_WANTS = """
SELECT node_id, engine, version, source, is_removed, adopt_url FROM controller.engine_want
 ORDER BY node_id, engine, version
"""
_WANT = """
INSERT INTO controller.engine_want (node_id, engine, version, source, is_removed, adopt_url)
VALUES (%(node_id)s, %(engine)s, %(version)s, %(source)s, %(is_removed)s, %(adopt_url)s)
ON CONFLICT (node_id, engine, version) DO UPDATE
   SET source = excluded.source, is_removed = excluded.is_removed, adopt_url = excluded.adopt_url, created_at = now()
"""
_IS_WANTED = """
SELECT 1 FROM controller.engine_want WHERE engine = %(engine)s AND version = %(version)s AND NOT is_removed LIMIT 1
"""
_FORGET = """
DELETE FROM controller.engine_want
 WHERE node_id = %(node_id)s AND engine = %(engine)s AND version = %(version)s AND adopt_url <> ''
"""
_KEEP = """
DELETE FROM controller.engine_want WHERE engine = %(engine)s AND version = %(version)s AND is_removed
"""
# What was to go and is not reported any more has gone.
_GONE = """
DELETE FROM controller.engine_want
 WHERE node_id = %(node_id)s AND is_removed AND engine || '@' || version <> ALL (%(reported)s)
"""
_DEFAULTS = "SELECT engine, version, previous FROM controller.engine_default ORDER BY engine"
_DEFAULT = "SELECT engine, version, previous FROM controller.engine_default WHERE engine = %(engine)s"
_SET_DEFAULT = """
INSERT INTO controller.engine_default (engine, version, previous) VALUES (%(engine)s, %(version)s, %(previous)s)
ON CONFLICT (engine) DO UPDATE
   SET version = excluded.version, previous = excluded.previous, updated_at = now()
"""
# Two upgrades of one engine at a time would each remember the other's default as the previous one.
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended('slice engine ' || %(engine)s, 0))"
_NODES = "SELECT node_id, name FROM controller.node ORDER BY name"
_INSTALLS = """
SELECT node_id, node.name AS node_name, fact ->> 'engine' AS engine, install ->> 'version' AS version,
       install ->> 'state' AS state, install ->> 'message' AS message, (install ->> 'size_bytes')::bigint AS size_bytes
  FROM controller.node
 CROSS JOIN LATERAL jsonb_array_elements(engines) AS fact
 CROSS JOIN LATERAL jsonb_array_elements(coalesce(fact -> 'installs', '[]')) AS install
 WHERE fact ->> 'engine' = %(engine)s
 ORDER BY node.name
"""
_USES = """
SELECT DISTINCT deployment.name AS deployment, replica.node_id, replica.engine_version
  FROM controller.replica JOIN controller.deployment USING (deployment_id)
 WHERE replica.engine = %(engine)s AND replica.desired <> 'stop' AND replica.runtime = 'process'
 ORDER BY deployment
"""
# Disabled, without replicas or not placed: it would start this version on a node where it may run.
_PINS = """
SELECT name AS deployment, is_enabled FROM controller.deployment
 WHERE engine = %(engine)s AND engine_version = %(version)s AND runtime = 'process' AND NOT is_deleting
   AND (node_name = '' OR node_name = ANY (%(nodes)s))
   AND NOT EXISTS (SELECT 1 FROM controller.replica WHERE replica.deployment_id = deployment.deployment_id
                      AND replica.engine_version = deployment.engine_version AND replica.desired <> 'stop')
 ORDER BY name
"""


async def wants(connection: postgres.Connection) -> list[EngineWant]:
    """Return every wish of an operator, by node."""
    return await postgres.fetch_all(connection, EngineWant, _WANTS)


async def want(connection: postgres.Connection, row: EngineWant) -> None:
    """Write one wish over an earlier one for the same version on the same node."""
    await postgres.execute(connection, _WANT, vars(row))


async def is_wanted(connection: postgres.Connection, engine: str, version: str) -> bool:
    """Return whether an operator wants a version of an engine anywhere."""
    cursor = await connection.execute(_IS_WANTED, {"engine": engine, "version": version})
    return await cursor.fetchone() is not None


async def end_adoption(connection: postgres.Connection, node_id: str, engine: str) -> bool:
    """Forget that a running engine is adopted on a node; return whether it was."""
    return bool(await postgres.execute(connection, _FORGET, {"node_id": node_id, "engine": engine, "version": ""}))


async def forget_gone(connection: postgres.Connection, node_id: str, reported: list[str]) -> int:
    """Forget removals that are done; `reported` are `engine@version` of all that the node still has."""
    return await postgres.execute(connection, _GONE, {"node_id": node_id, "reported": reported})


async def keep(connection: postgres.Connection, engine: str, version: str) -> int:
    """Forget every wish to remove a version of an engine."""
    return await postgres.execute(connection, _KEEP, {"engine": engine, "version": version})


async def defaults(connection: postgres.Connection) -> list[EngineDefault]:
    """Return the chosen defaults; an engine without one has its adapter's."""
    return await postgres.fetch_all(connection, EngineDefault, _DEFAULTS)


async def default(connection: postgres.Connection, engine: str) -> EngineDefault | None:
    """Return the chosen default of an engine."""
    return await postgres.fetch_one(connection, EngineDefault, _DEFAULT, {"engine": engine})


async def set_default(connection: postgres.Connection, row: EngineDefault) -> None:
    """Choose the default of an engine."""
    await postgres.execute(connection, _SET_DEFAULT, vars(row))


async def one_at_a_time(connection: postgres.Connection, engine: str) -> None:
    """Hold other changes of an engine's default back until the transaction ends."""
    await connection.execute(_ONE_AT_A_TIME, {"engine": engine})


async def nodes(connection: postgres.Connection) -> list[NodeName]:
    """Return every node, by name."""
    return await postgres.fetch_all(connection, NodeName, _NODES)


async def installs(connection: postgres.Connection, engine: str) -> list[NodeInstall]:
    """Return which versions of an engine the nodes reported last."""
    return await postgres.fetch_all(connection, NodeInstall, _INSTALLS, {"engine": engine})


async def uses(connection: postgres.Connection, engine: str) -> list[Use]:
    """Return which deployments run which versions of an engine where."""
    return await postgres.fetch_all(connection, Use, _USES, {"engine": engine})


async def pins(connection: postgres.Connection, engine: str, version: str, nodes: Sequence[str]) -> list[Pin]:
    """Return the deployments that name a version, may run on one of `nodes`, and have no replica of it anywhere."""
    row = {"engine": engine, "version": version, "nodes": list(nodes)}
    return await postgres.fetch_all(connection, Pin, _PINS, row)
