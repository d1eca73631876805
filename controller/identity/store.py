"""Identity's SQL. Called by `controller.identity.service` alone."""

from datetime import datetime

from psycopg import errors as pg

from controller.identity.model import ApiKey
from core.infra import postgres

DEFAULT_PROJECT = "prj_default"

_SELECT = """
SELECT kid, api_key.name, project.name AS project, digest, api_key.created_at, expires_at, revoked_at
  FROM controller.api_key JOIN controller.project USING (project_id)
"""
_ALL = _SELECT + " ORDER BY api_key.created_at, kid"
# A kid names one key for ever, a name only one living key: the newest of that name wins among the revoked.
_ONE = (
    _SELECT
    + """
 WHERE kid = %(word)s OR api_key.name = %(word)s
 ORDER BY (kid = %(word)s) DESC, (revoked_at IS NULL) DESC, api_key.created_at DESC LIMIT 1
"""
)
_INSERT = """
INSERT INTO controller.api_key (kid, name, project_id, digest, expires_at)
VALUES (%(kid)s, %(name)s, %(project_id)s, %(digest)s, %(expires_at)s)
"""
_REVOKE = "UPDATE controller.api_key SET revoked_at = now() WHERE kid = %(kid)s AND revoked_at IS NULL"


async def all_keys(connection: postgres.Connection) -> list[ApiKey]:
    """Return every key, revoked ones included, oldest first."""
    return await postgres.fetch_all(connection, ApiKey, _ALL)


async def find(connection: postgres.Connection, word: str) -> ApiKey | None:
    """Return the key whose kid or name is `word`."""
    return await postgres.fetch_one(connection, ApiKey, _ONE, {"word": word})


async def insert(
    connection: postgres.Connection, *, kid: str, name: str, digest: bytes, expires_at: datetime | None
) -> bool:
    """Store a key of the default project; return False when a living key has the name."""
    row = {"kid": kid, "name": name, "project_id": DEFAULT_PROJECT, "digest": digest, "expires_at": expires_at}
    try:
        async with connection.transaction():
            await postgres.execute(connection, _INSERT, row)
    except pg.UniqueViolation:
        return False
    return True


async def revoke(connection: postgres.Connection, kid: str) -> int:
    """Revoke the key `kid` and return 1, or 0 when it was revoked before."""
    return await postgres.execute(connection, _REVOKE, {"kid": kid})
