"""The SQL of join tokens. Called by `controller.identity.tokens` and `controller.identity.joining`."""

from collections.abc import Mapping
from datetime import datetime

from psycopg.types.json import Jsonb

from controller.identity.model import JoinToken
from core.infra import postgres

_SELECT = """
SELECT token_id, digest, labels, node_name, is_approving, created_at, expires_at, revoked_at, used_at, used_by_node,
       used_key
  FROM controller.join_token
"""
_ALL = _SELECT + " ORDER BY created_at, token_id"
_ONE = _SELECT + " WHERE token_id = %(token_id)s"
# Whoever joins holds the row until its transaction ends: of two with one token the second finds it used.
_HELD = _ONE + " FOR UPDATE"
_INSERT = """
INSERT INTO controller.join_token (token_id, digest, labels, node_name, is_approving, expires_at)
VALUES (%(token_id)s, %(digest)s, %(labels)s, %(node_name)s, %(is_approving)s, %(expires_at)s)
"""
_BURN = """
UPDATE controller.join_token SET used_at = now(), used_by_node = %(node_id)s, used_key = %(key)s
 WHERE token_id = %(token_id)s AND used_at IS NULL AND revoked_at IS NULL
"""
_REVOKE = """
UPDATE controller.join_token SET revoked_at = now()
 WHERE token_id = %(token_id)s AND revoked_at IS NULL AND used_at IS NULL
"""
# Listed for a while after their end, for whoever asks later what became of one.
_SWEEP = "DELETE FROM controller.join_token WHERE greatest(expires_at, used_at) < now() - interval '30 days'"


async def all_tokens(connection: postgres.Connection) -> list[JoinToken]:
    """Return every token of late, oldest first."""
    return await postgres.fetch_all(connection, JoinToken, _ALL)


async def token(connection: postgres.Connection, token_id: str, *, is_held: bool = False) -> JoinToken | None:
    """Return one token; with `is_held` nobody else changes it before the transaction ends."""
    return await postgres.fetch_one(connection, JoinToken, _HELD if is_held else _ONE, {"token_id": token_id})


async def insert(
    connection: postgres.Connection,
    *,
    token_id: str,
    digest: bytes,
    labels: Mapping[str, str],
    node_name: str,
    is_approving: bool,
    expires_at: datetime,
) -> None:
    """Store a token, and forget those that ended long ago."""
    row = {
        "token_id": token_id,
        "digest": digest,
        "labels": Jsonb(dict(labels)),
        "node_name": node_name,
        "is_approving": is_approving,
        "expires_at": expires_at,
    }
    await postgres.execute(connection, _SWEEP)
    await postgres.execute(connection, _INSERT, row)


async def burn(connection: postgres.Connection, token_id: str, node_id: str, key: bytes) -> bool:
    """Use a token up; return False when it was used or revoked before."""
    row = {"token_id": token_id, "node_id": node_id, "key": key}
    return bool(await postgres.execute(connection, _BURN, row))


async def revoke(connection: postgres.Connection, token_id: str) -> bool:
    """Revoke a token; return False when it was revoked or used before."""
    return bool(await postgres.execute(connection, _REVOKE, {"token_id": token_id}))
