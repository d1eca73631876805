"""Secrets: keys of engines that are not ours, stored sealed, named by deployments.

Comes in: names and values from the admin API. Goes out: names, never values, and events. Values leave through
`controller.secrets.vault` alone.
"""

from typing import Protocol

from controller.secrets import store
from controller.secrets.model import SealedSecret, SecretFacts
from controller.secrets.vault import NONCE_BYTES, Vault
from core.errors import Failure
from core.events import Happening, Subject
from core.infra import postgres
from core.names import checked_name, did_you_mean
from core.ports import EventLog, Wakeups

MAX_VALUE = 8192


class Randomness(Protocol):
    """Where nonces come from; the real one is `core.infra.entropy.SystemEntropy`."""

    def token_bytes(self, count: int) -> bytes:
        """Return `count` random bytes."""


class Secrets:
    """The secrets' one owner."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        vault: Vault,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        entropy: Randomness,
    ) -> None:
        self._database = database
        self.vault = vault
        self._events = events
        self._wakeups = wakeups
        self._entropy = entropy

    async def all(self) -> tuple[SecretFacts, ...]:
        """Return what may be shown of every secret.

        Raises:
            Failure: `storage.unavailable`.
        """
        async with self._database.snapshot() as connection:
            rows = await store.secrets(connection)
            users = await store.users(connection)
        return tuple(
            SecretFacts(
                name=row.name,
                created_at=row.created_at,
                used_by=tuple(one.deployment for one in users if one.secret_name == row.name),
                is_readable=self._is_readable(row),
            )
            for row in rows
        )

    def _is_readable(self, row: SealedSecret) -> bool:
        try:
            self.vault.open(row)
        except Failure:
            return False
        return True

    async def set(self, name: str, value: str) -> SecretFacts:
        """Store `value` under `name`; doors and nodes get it within seconds when a deployment uses it already.

        Raises:
            Failure: `request.invalid_name`; `request.invalid_field` for a value that no HTTP header can carry.
        """
        checked_name("secret", name)
        _check_value(value)
        nonce = self._entropy.token_bytes(NONCE_BYTES)
        ciphertext = self.vault.seal(name, value, nonce)
        async with self._database.transaction() as connection:
            await store.put(connection, name=name, nonce=nonce, ciphertext=ciphertext)
            await self._record(connection, "secret_set", name, f"secret {name} was stored")
        self._wakeups.wake("secret_set")
        return next(one for one in await self.all() if one.name == name)

    async def delete(self, name: str) -> None:
        """Delete a secret.

        Raises:
            Failure: `secret.not_found`; `secret.in_use` while a deployment names it.
        """
        async with self._database.transaction() as connection:
            if not await store.hold(connection, name, is_locked=True):
                raise await self._unknown(connection, name)
            users = [one.deployment for one in await store.users(connection) if one.secret_name == name]
            if users:
                raise Failure(
                    "secret.in_use",
                    f"secret {name!r} is used by {', '.join(users)}",
                    hint="delete the deployment first, or store another value with `slice secret set`",
                )
            await store.delete(connection, name)
            await self._record(connection, "secret_deleted", name, f"secret {name} was deleted")
        self._wakeups.wake("secret_deleted")

    async def hold(self, connection: postgres.Connection, name: str) -> None:
        """Check, for a deployment that is made in `connection`'s transaction, that `name` is there and can be opened.

        Raises:
            Failure: `secret.not_found`, `secret.unreadable`.
        """
        if not await store.hold(connection, name):
            raise await self._unknown(connection, name)
        self.vault.open(next(row for row in await store.secrets(connection) if row.name == name))

    async def _unknown(self, connection: postgres.Connection, name: str) -> Failure:
        known = [row.name for row in await store.secrets(connection)]
        return Failure(
            "secret.not_found",
            f"there is no secret {name[:80]!r}.{did_you_mean(name, known)}",
            hint=f"store it with `slice secret set {name[:80]}`",
            param="secret",
        )

    async def _record(self, connection: postgres.Connection, kind: str, name: str, message: str) -> None:
        happening = Happening(kind=kind, subject_kind=Subject.SECRET, subject=name, message=message)
        await self._events.record(connection, happening)


def _check_value(value: str) -> None:
    """Refuse what cannot stand in an `Authorization` header: anything but visible ASCII (RFC 6750, 2.1)."""
    if not 0 < len(value) <= MAX_VALUE or any(not 0x20 < ord(one) < 0x7F for one in value):
        raise Failure(
            "request.invalid_field",
            f"a secret is 1 to {MAX_VALUE} visible ASCII characters without spaces",
            hint="look for a line break or a quote that came with it",
            param="value",
        )
