"""The SQL of aliases and of stages. Called by `controller.registry` and, to read, by the reconcile loop."""

from controller.registry.model import Alias, StageEvent, Version
from core.infra import postgres

_ALIASES = """
SELECT alias.name, model.name AS model, version.number AS version, alias.resource_version
  FROM controller.alias JOIN controller.model USING (model_id) LEFT JOIN controller.version USING (version_id)
 WHERE NOT model.is_deleting ORDER BY alias.name
"""
_LOCKED = "SELECT resource_version FROM controller.alias WHERE name = %(name)s FOR UPDATE"
# An alias that says what it said before is no change.
_PUT = """
INSERT INTO controller.alias (name, model_id, version_id) VALUES (%(name)s, %(model_id)s, %(version_id)s)
ON CONFLICT (name) DO UPDATE SET model_id = excluded.model_id, version_id = excluded.version_id,
    resource_version = alias.resource_version + 1
 WHERE (alias.model_id, alias.version_id) IS DISTINCT FROM (excluded.model_id, excluded.version_id)
"""
_DELETE = "DELETE FROM controller.alias WHERE name = %(name)s"
_MOVE = """
UPDATE controller.version SET stage = %(to)s WHERE version_id = %(version_id)s AND stage = %(from)s AND NOT is_deleting
"""
_MOVED = """
INSERT INTO controller.stage_event
    (version_id, from_stage, to_stage, reason, model_id, chat_template_sha256, approved_template)
VALUES (%(version_id)s, %(from)s, %(to)s, %(reason)s, %(model_id)s, %(template)s, %(approved)s)
"""
_HISTORY = """
SELECT at, from_stage, to_stage, reason, approved_template
  FROM controller.stage_event WHERE version_id = %(version_id)s ORDER BY seq
"""
_PRODUCTION_TEMPLATES = """
SELECT chat_template_sha256 FROM controller.stage_event WHERE model_id = %(model_id)s AND to_stage = 'production'
 ORDER BY seq DESC
"""


async def aliases(connection: postgres.Connection) -> list[Alias]:
    """Return every alias, by name."""
    return await postgres.fetch_all(connection, Alias, _ALIASES)


async def locked(connection: postgres.Connection, name: str) -> int | None:
    """Hold an alias's row until the transaction ends and return its resource version, None when there is none."""
    row = await (await connection.execute(_LOCKED, {"name": name})).fetchone()
    return None if row is None else int(row[0])


async def put(connection: postgres.Connection, name: str, model_id: str, version_id: str | None) -> bool:
    """Let the alias `name` stand for a model or one version from now on; return False when it did already."""
    row = {"name": name, "model_id": model_id, "version_id": version_id}
    return bool(await postgres.execute(connection, _PUT, row))


async def delete(connection: postgres.Connection, name: str) -> bool:
    """Delete an alias; return whether there was one."""
    return bool(await postgres.execute(connection, _DELETE, {"name": name}))


async def move(connection: postgres.Connection, version: Version, to: str, reason: str, approved: str) -> bool:
    """Move a version from its stage, and record it with the chat template that this approved ("" : none).

    Returns False when the version is in that stage no more.
    """
    row = {
        "version_id": version.version_id,
        "from": version.stage,
        "to": to,
        "reason": reason,
        "model_id": version.model_id,
        "template": version.chat_template_sha256,
        "approved": approved,
    }
    if not await postgres.execute(connection, _MOVE, row):
        return False
    await postgres.execute(connection, _MOVED, row)
    return True


async def history(connection: postgres.Connection, version_id: str) -> list[StageEvent]:
    """Return every move of a version between stages, oldest first."""
    return await postgres.fetch_all(connection, StageEvent, _HISTORY, {"version_id": version_id})


async def production_templates(connection: postgres.Connection, model_id: str) -> list[str]:
    """Return the digests of the chat templates that a model's versions went to production with, newest first."""
    rows = await (await connection.execute(_PRODUCTION_TEMPLATES, {"model_id": model_id})).fetchall()
    return [str(row[0]) for row in rows]
