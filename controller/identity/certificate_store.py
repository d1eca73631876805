"""The SQL of certificates. Called by `controller.identity.certificates` alone."""

from dataclasses import dataclass
from datetime import datetime

from core.infra import postgres

_INSERT = """
INSERT INTO controller.certificate (serial, role, subject, expires_at)
VALUES (%(serial)s, %(role)s, %(subject)s, %(expires_at)s)
"""
_REVOKED = "SELECT serial FROM controller.certificate WHERE revoked_at IS NOT NULL AND expires_at > now()"
_REVOKE = """
UPDATE controller.certificate SET revoked_at = now()
 WHERE role = %(role)s AND subject = %(subject)s AND revoked_at IS NULL AND expires_at > now()
RETURNING serial
"""
# Whoever issues to a holder and whoever revokes what it has take turns: nothing is issued past a revocation.
_TURN = "SELECT pg_advisory_xact_lock(hashtextextended('slice certificate ' || %(role)s || ' ' || %(subject)s, 0))"
_IS_REVOKED = "SELECT serial FROM controller.certificate WHERE serial = %(serial)s AND revoked_at IS NOT NULL"
# Kept for a while after their end, for whoever asks later what was issued.
_SWEEP = "DELETE FROM controller.certificate WHERE expires_at < now() - interval '30 days'"


@dataclass(frozen=True, kw_only=True)
class _Serial:
    serial: str


async def insert(
    connection: postgres.Connection, *, serial: str, role: str, subject: str, expires_at: datetime
) -> None:
    """Record a certificate."""
    row = {"serial": serial, "role": role, "subject": subject, "expires_at": expires_at}
    await postgres.execute(connection, _INSERT, row)


async def take_turn(connection: postgres.Connection, role: str, subject: str) -> None:
    """Wait until nobody else issues to a holder or revokes what it has, for the rest of the transaction."""
    await connection.execute(_TURN, {"role": role, "subject": subject})


async def is_revoked(connection: postgres.Connection, serial: str) -> bool:
    """Return whether a certificate is revoked, as of this statement."""
    return await postgres.fetch_one(connection, _Serial, _IS_REVOKED, {"serial": serial}) is not None


async def revoked(connection: postgres.Connection) -> frozenset[str]:
    """Return the serials that are revoked and would be valid otherwise."""
    return frozenset(row.serial for row in await postgres.fetch_all(connection, _Serial, _REVOKED))


async def revoke(connection: postgres.Connection, role: str, subject: str) -> frozenset[str]:
    """Revoke what a holder has, in its turn, and return the serials."""
    await take_turn(connection, role, subject)
    rows = await postgres.fetch_all(connection, _Serial, _REVOKE, {"role": role, "subject": subject})
    return frozenset(row.serial for row in rows)


async def sweep(connection: postgres.Connection) -> None:
    """Forget certificates that ended long ago."""
    await postgres.execute(connection, _SWEEP)
