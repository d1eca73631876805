"""The registry's SQL but that of aliases and stages. Called by the services of `controller.registry` and the loop."""

from typing import LiteralString

from psycopg import errors as pg
from psycopg.types.json import Jsonb

from controller.registry import file_store
from controller.registry.model import File, FilePlace, Model, NewVersion, Pull, Use, Version
from core.infra import postgres

_MODEL = "SELECT model_id, name, is_deleting, resource_version, created_at FROM controller.model"
_MODELS = _MODEL + " WHERE NOT is_deleting ORDER BY name"
_MODEL_BY_NAME = _MODEL + " WHERE name = %(name)s"
_MODEL_BY_ID = _MODEL + " WHERE model_id = %(model_id)s"
_VERSION = """
SELECT version_id, model_id, number, digest, source, format, size_bytes, chat_template_sha256, facts,
       template_findings, stage, is_deleting, created_at, asked_sources
  FROM controller.version
"""
_VERSIONS = _VERSION + " ORDER BY model_id, number"
_VERSIONS_OF = _VERSION + " WHERE model_id = %(model_id)s AND NOT is_deleting ORDER BY number"
_FILE = "SELECT version_id, position, path, sha256, size_bytes, source FROM controller.file"
_FILES = _FILE + " ORDER BY version_id, position"
_FILES_OF = _FILE + " WHERE version_id = %(version_id)s ORDER BY position"
_PLACES = """
SELECT DISTINCT node_file.sha256, node_id, node.name AS node_name
  FROM controller.node_file JOIN controller.node USING (node_id) ORDER BY node_name
"""
_INSERT_MODEL = """
INSERT INTO controller.model (model_id, name) VALUES (%(model_id)s, %(name)s) ON CONFLICT (name) DO NOTHING
"""
_INSERT_VERSION = """
INSERT INTO controller.version
    (version_id, model_id, number, digest, source, format, size_bytes, chat_template_sha256, facts)
SELECT %(version_id)s, %(model_id)s,
       greatest(coalesce(max(number), 0), (SELECT last_number FROM controller.model WHERE model_id = %(model_id)s)) + 1,
       %(digest)s, %(source)s, %(format)s, %(size_bytes)s,
       %(chat_template_sha256)s, %(facts)s
  FROM controller.version WHERE model_id = %(model_id)s
ON CONFLICT (model_id, digest) DO NOTHING
"""
_NOTE_ASKED = """
UPDATE controller.version SET asked_sources = asked_sources || to_jsonb(%(source)s::text)
  FROM controller.model
 WHERE model.model_id = version.model_id AND model.name = %(name)s AND digest = %(digest)s
   AND NOT asked_sources @> to_jsonb(%(source)s::text)
"""
_NAMES = """
SELECT name FROM controller.model WHERE NOT is_deleting
UNION SELECT alias.name FROM controller.alias JOIN controller.model USING (model_id) WHERE NOT is_deleting
UNION SELECT name FROM controller.deployment WHERE NOT is_deleting
ORDER BY name
"""
_HIDE_MODEL = "UPDATE controller.model SET is_deleting = true WHERE model_id = %(model_id)s"
_DELETE_MODEL = "DELETE FROM controller.model WHERE model_id = %(model_id)s"
_LOCK_MODEL = "SELECT 1 FROM controller.model WHERE name = %(name)s FOR UPDATE"
_TOUCH_MODEL = "UPDATE controller.model SET resource_version = resource_version + 1 WHERE model_id = %(model_id)s"
_HIDE_VERSION = "UPDATE controller.version SET is_deleting = true WHERE version_id = %(version_id)s"
_DELETE_VERSION = "DELETE FROM controller.version WHERE version_id = %(version_id)s"
_KEEP_NUMBER = """
UPDATE controller.model SET last_number = greatest(last_number, %(number)s) WHERE model_id = %(model_id)s
"""
_USES = """
SELECT 'deployment' AS kind, deployment.name, number, deployment.is_deleting AS is_leaving
  FROM controller.deployment JOIN controller.version USING (version_id) WHERE model_id = %(model_id)s
UNION ALL
SELECT 'alias', alias.name, number, false
  FROM controller.alias LEFT JOIN controller.version USING (version_id) WHERE alias.model_id = %(model_id)s
 ORDER BY kind DESC, name
"""
_PULL = """
SELECT pull_id, model_name, source, engine, node_id, state, bytes_done, bytes_total, code, message, hint, created_at,
       finished_at
  FROM controller.pull
"""
_PULLS = _PULL + " ORDER BY created_at DESC, pull_id LIMIT 200"
_PULL_BY_ID = _PULL + " WHERE pull_id = %(pull_id)s"
_PULL_ACTIVE = _PULL + " WHERE model_name = %(model_name)s AND source = %(source)s AND finished_at IS NULL"
# A cancelled pull stays in its node's desired set for a minute, so that a node that was just told of it hears the end.
_PULLS_LIVE = (
    _PULL
    + """
 WHERE finished_at IS NULL
    OR (state = 'cancelled' AND node_id IS NOT NULL AND finished_at > now() - interval '60 seconds')
 ORDER BY created_at, pull_id
"""
)
_ASSIGN_PULL = """
UPDATE controller.pull SET node_id = %(node_id)s, state = 'queued'
 WHERE pull_id = %(pull_id)s AND finished_at IS NULL AND node_id IS DISTINCT FROM %(node_id)s
"""
# A version is held by deployments, and by replicas that a deployment has left behind on its way to another version.
_SWEEP_VERSIONS = """
DELETE FROM controller.version
 WHERE is_deleting
   AND NOT EXISTS (SELECT 1 FROM controller.deployment WHERE deployment.version_id = version.version_id)
   AND NOT EXISTS (SELECT 1 FROM controller.replica WHERE replica.version_id = version.version_id)
"""
_SWEEP_MODELS = """
DELETE FROM controller.model
 WHERE is_deleting
   AND NOT EXISTS (SELECT 1 FROM controller.version JOIN controller.deployment USING (version_id)
                    WHERE version.model_id = model.model_id)
   AND NOT EXISTS (SELECT 1 FROM controller.version JOIN controller.replica USING (version_id)
                    WHERE version.model_id = model.model_id)
"""
_INSERT_PULL = """
INSERT INTO controller.pull (pull_id, model_name, source, engine, state, bytes_done, bytes_total, finished_at)
VALUES (%(pull_id)s, %(model_name)s, %(source)s, %(engine)s, %(state)s, %(bytes)s, %(bytes)s,
        CASE WHEN %(state)s = 'queued' THEN NULL ELSE now() END)
ON CONFLICT (model_name, source) WHERE finished_at IS NULL DO NOTHING
"""
# A finished pull never moves again: every change is guarded by finished_at.
_MOVE_PULL = """
UPDATE controller.pull SET state = %(state)s, bytes_done = %(bytes_done)s, bytes_total = %(bytes_total)s
 WHERE pull_id = %(pull_id)s AND finished_at IS NULL
   AND (state, bytes_done, bytes_total) IS DISTINCT FROM (%(state)s, %(bytes_done)s::bigint, %(bytes_total)s::bigint)
"""
_END_PULL = """
UPDATE controller.pull SET state = %(state)s, code = %(code)s, message = %(message)s, hint = %(hint)s,
       bytes_done = CASE WHEN %(state)s = 'done' THEN %(bytes)s ELSE bytes_done END,
       bytes_total = CASE WHEN %(state)s = 'done' THEN %(bytes)s ELSE bytes_total END, finished_at = now()
 WHERE pull_id = %(pull_id)s AND finished_at IS NULL
"""


async def models(connection: postgres.Connection) -> list[Model]:
    """Return every model that is not being deleted, by name."""
    return await postgres.fetch_all(connection, Model, _MODELS)


async def model(connection: postgres.Connection, name: str) -> Model | None:
    """Return the model `name`, even while it is being deleted."""
    return await postgres.fetch_one(connection, Model, _MODEL_BY_NAME, {"name": name})


async def model_by_id(connection: postgres.Connection, model_id: str) -> Model | None:
    """Return one model by its id."""
    return await postgres.fetch_one(connection, Model, _MODEL_BY_ID, {"model_id": model_id})


async def versions(connection: postgres.Connection) -> list[Version]:
    """Return every version, by model and number, those that are being deleted too."""
    return await postgres.fetch_all(connection, Version, _VERSIONS)


async def versions_of(connection: postgres.Connection, model_id: str) -> list[Version]:
    """Return the versions of a model that are not being deleted, oldest first."""
    return await postgres.fetch_all(connection, Version, _VERSIONS_OF, {"model_id": model_id})


async def files(connection: postgres.Connection) -> list[File]:
    """Return every file of every version."""
    return await postgres.fetch_all(connection, File, _FILES)


async def files_of(connection: postgres.Connection, version_id: str) -> list[File]:
    """Return the files of one version, the model's first."""
    return await postgres.fetch_all(connection, File, _FILES_OF, {"version_id": version_id})


async def places(connection: postgres.Connection) -> list[FilePlace]:
    """Return which nodes hold which content."""
    return await postgres.fetch_all(connection, FilePlace, _PLACES)


async def names(connection: postgres.Connection) -> list[str]:
    """Return every name that somebody may ask for: models, aliases and deployments, by name."""
    rows = await (await connection.execute(_NAMES)).fetchall()
    return [str(row[0]) for row in rows]


async def ensure_model(connection: postgres.Connection, model_id: str, name: str) -> bool:
    """Make the model `name` if it is not there; return whether it was made."""
    return bool(await postgres.execute(connection, _INSERT_MODEL, {"model_id": model_id, "name": name}))


async def insert_version(connection: postgres.Connection, version_id: str, model_id: str, new: NewVersion) -> bool:
    """Make the next version of a model; return False when this content is one of its versions already."""
    row = {
        "version_id": version_id,
        "model_id": model_id,
        "digest": new.digest,
        "source": new.source,
        "format": new.format,
        "size_bytes": new.size_bytes,
        "chat_template_sha256": new.chat_template_sha256,
        "facts": Jsonb(dict(new.facts)),
    }
    if not await postgres.execute(connection, _INSERT_VERSION, row):
        return False
    await file_store.insert_files(connection, version_id, new.files)
    await file_store.set_template(connection, version_id, new.chat_template, new.template_findings)
    return True


async def note_asked(connection: postgres.Connection, name: str, digest: str, source: str) -> None:
    """Remember that `source`, as somebody wrote it, turned out to be the version `digest` of the model `name`."""
    await postgres.execute(connection, _NOTE_ASKED, {"name": name, "digest": digest, "source": source})


async def lock_model(connection: postgres.Connection, name: str) -> None:
    """Hold the row of the model `name` until the transaction ends."""
    await connection.execute(_LOCK_MODEL, {"name": name})


async def touch_model(connection: postgres.Connection, model_id: str) -> None:
    """Count a change of a model."""
    await postgres.execute(connection, _TOUCH_MODEL, {"model_id": model_id})


async def uses(connection: postgres.Connection, model_id: str) -> list[Use]:
    """Return the deployments, then the aliases, that need a model or a version of it."""
    return await postgres.fetch_all(connection, Use, _USES, {"model_id": model_id})


async def delete_model(connection: postgres.Connection, model_id: str) -> bool:
    """Delete a model with its versions and aliases; return False when a deployment or replica holds one of them."""
    return await _deleted(connection, _DELETE_MODEL, {"model_id": model_id})


async def hide_model(connection: postgres.Connection, model_id: str) -> None:
    """Mark a model as being deleted."""
    await postgres.execute(connection, _HIDE_MODEL, {"model_id": model_id})


async def delete_version(connection: postgres.Connection, version: Version) -> bool:
    """Delete a version, whose number never comes back; return False when a deployment or replica holds it."""
    await postgres.execute(connection, _KEEP_NUMBER, {"model_id": version.model_id, "number": version.number})
    return await _deleted(connection, _DELETE_VERSION, {"version_id": version.version_id})


async def hide_version(connection: postgres.Connection, version_id: str) -> None:
    """Mark a version as being deleted."""
    await postgres.execute(connection, _HIDE_VERSION, {"version_id": version_id})


async def _deleted(connection: postgres.Connection, query: LiteralString, row: postgres.Params) -> bool:
    try:
        async with connection.transaction():
            await postgres.execute(connection, query, row)
    except (pg.ForeignKeyViolation, pg.RestrictViolation):
        return False
    return True


async def pulls(connection: postgres.Connection) -> list[Pull]:
    """Return the newest 200 pulls, newest first."""
    return await postgres.fetch_all(connection, Pull, _PULLS)


async def pull(connection: postgres.Connection, pull_id: str) -> Pull | None:
    """Return one pull."""
    return await postgres.fetch_one(connection, Pull, _PULL_BY_ID, {"pull_id": pull_id})


async def live_pulls(connection: postgres.Connection) -> list[Pull]:
    """Return the pulls that nodes should know of: unfinished ones, and cancelled ones for a minute."""
    return await postgres.fetch_all(connection, Pull, _PULLS_LIVE)


async def assign_pull(connection: postgres.Connection, pull_id: str, node_id: str | None) -> bool:
    """Give an unfinished pull to a node, or take it back (None)."""
    return bool(await postgres.execute(connection, _ASSIGN_PULL, {"pull_id": pull_id, "node_id": node_id}))


async def sweep(connection: postgres.Connection) -> int:
    """Delete the models and versions that were deleted by force and that nothing holds any more."""
    return await postgres.execute(connection, _SWEEP_VERSIONS) + await postgres.execute(connection, _SWEEP_MODELS)


async def active_pull(connection: postgres.Connection, model_name: str, source: str) -> Pull | None:
    """Return the unfinished pull of the same thing."""
    return await postgres.fetch_one(connection, Pull, _PULL_ACTIVE, {"model_name": model_name, "source": source})


async def insert_pull(
    connection: postgres.Connection,
    *,
    pull_id: str,
    model_name: str,
    source: str,
    engine: str,
    state: str,
    size_bytes: int,
) -> bool:
    """Make a pull, queued or done; return False when the same one is under way."""
    row = {
        "pull_id": pull_id,
        "model_name": model_name,
        "source": source,
        "engine": engine,
        "state": state,
        "bytes": size_bytes,
    }
    return bool(await postgres.execute(connection, _INSERT_PULL, row))


async def move_pull(
    connection: postgres.Connection, pull_id: str, *, state: str, bytes_done: int, bytes_total: int
) -> int:
    """Write the progress of an unfinished pull; return 1 when something changed."""
    row = {"pull_id": pull_id, "state": state, "bytes_done": bytes_done, "bytes_total": bytes_total}
    return await postgres.execute(connection, _MOVE_PULL, row)


async def end_pull(
    connection: postgres.Connection,
    pull_id: str,
    *,
    state: str,
    code: str = "",
    message: str = "",
    hint: str = "",
    size_bytes: int = 0,
) -> int:
    """Finish a pull; return 0 when it had ended before."""
    row = {"pull_id": pull_id, "state": state, "code": code, "message": message, "hint": hint, "bytes": size_bytes}
    return await postgres.execute(connection, _END_PULL, row)
