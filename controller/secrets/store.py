"""The SQL of secrets. Called by `controller.secrets.service` and, to read, by `controller.reconcile.picture`."""

from dataclasses import dataclass

from controller.secrets.model import SealedSecret
from core.infra import postgres

_ALL = "SELECT name, nonce, ciphertext, created_at FROM controller.secret ORDER BY name"
_PUT = """
INSERT INTO controller.secret (name, nonce, ciphertext) VALUES (%(name)s, %(nonce)s, %(ciphertext)s)
ON CONFLICT (name) DO UPDATE SET nonce = excluded.nonce, ciphertext = excluded.ciphertext, created_at = now()
"""
# A deployment that is being made holds the row until its transaction ends: no secret vanishes under it.
_HOLD = "SELECT 1 FROM controller.secret WHERE name = %(name)s FOR SHARE"
_LOCK = "SELECT 1 FROM controller.secret WHERE name = %(name)s FOR UPDATE"
_DELETE = "DELETE FROM controller.secret WHERE name = %(name)s"
_USERS = """
SELECT secret_name, name AS deployment FROM controller.deployment
 WHERE secret_name <> '' ORDER BY secret_name, name
"""


@dataclass(frozen=True, kw_only=True)
class SecretUser:
    """One deployment that names a secret."""

    secret_name: str
    deployment: str


async def secrets(connection: postgres.Connection) -> list[SealedSecret]:
    """Return every secret, sealed, by name."""
    return await postgres.fetch_all(connection, SealedSecret, _ALL)


async def users(connection: postgres.Connection) -> list[SecretUser]:
    """Return which deployments name which secret."""
    return await postgres.fetch_all(connection, SecretUser, _USERS)


async def put(connection: postgres.Connection, *, name: str, nonce: bytes, ciphertext: bytes) -> None:
    """Store a secret, in place of an earlier one of that name."""
    await postgres.execute(connection, _PUT, {"name": name, "nonce": nonce, "ciphertext": ciphertext})


async def hold(connection: postgres.Connection, name: str, *, is_locked: bool = False) -> bool:
    """Hold a secret's row for the transaction, alone when `is_locked`; return False when there is none."""
    cursor = await connection.execute(_LOCK if is_locked else _HOLD, {"name": name})
    return await cursor.fetchone() is not None


async def delete(connection: postgres.Connection, name: str) -> None:
    """Delete a secret."""
    await postgres.execute(connection, _DELETE, {"name": name})
