"""Who may call the front door: keys of projects, minted, listed, revoked.

Comes in: names from the admin API. Goes out: keys, and the table of digests that doors check against. A key's text
leaves this module once, in `mint`.
"""

from datetime import timedelta
from typing import Protocol

from controller.identity import store
from controller.identity.model import ApiKey, MintedKey
from core import apikeys
from core.clock import Clock
from core.errors import Failure
from core.events import Happening, Subject
from core.infra import postgres
from core.names import checked_name, did_you_mean
from core.ports import EventLog, Wakeups


class Bytes(Protocol):
    """A source of random bytes."""

    def token_bytes(self, count: int) -> bytes:
        """Return `count` random bytes."""


class Identity:
    """API keys of the one project `default`."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        entropy: Bytes,
        clock: Clock,
        pepper: bytes,
    ) -> None:
        self._database = database
        self._events = events
        self._wakeups = wakeups
        self._entropy = entropy
        self._clock = clock
        self._pepper = pepper

    async def keys(self) -> list[ApiKey]:
        """Return every key, revoked ones included."""
        async with self._database.connection() as connection:
            return await store.all_keys(connection)

    async def keys_in(self, connection: postgres.Connection) -> list[ApiKey]:
        """Return every key as `connection`'s snapshot sees it."""
        return await store.all_keys(connection)

    async def mint(self, name: str, expires_in_s: int | None) -> MintedKey:
        """Make a key called `name` that lives `expires_in_s` seconds (None: until revoked).

        Raises:
            Failure: `request.invalid_name`, `key.name_taken`, `storage.unavailable`.
        """
        checked_name("key", name)
        kid, text = apikeys.render_key(self._entropy.token_bytes(apikeys.ENTROPY_BYTES))
        parsed = apikeys.parse_key(text)
        assert parsed is not None, "a key we rendered must parse"
        expires_at = self._clock.now() + timedelta(seconds=expires_in_s) if expires_in_s is not None else None
        digest = apikeys.key_digest(self._pepper, parsed.secret)
        async with self._database.transaction() as connection:
            if not await store.insert(connection, kid=kid, name=name, digest=digest, expires_at=expires_at):
                raise Failure(
                    "key.name_taken",
                    f"a key named {name!r} exists",
                    hint=f"revoke it with `slice key revoke {name}`, or choose another name",
                    param="name",
                )
            await self._events.record(connection, _happening("key_created", kid, f"key {name} was created"))
            key = await store.find(connection, kid)
            assert key is not None, "inserted in this transaction"
        self._wakeups.wake("key_created")
        return MintedKey(key=key, text=text)

    async def revoke(self, word: str) -> ApiKey:
        """Revoke the key whose kid or name is `word`; revoking twice changes nothing.

        Raises:
            Failure: `key.not_found`, `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            key = await store.find(connection, word)
            if key is None:
                known = [item.name for item in await store.all_keys(connection) if item.revoked_at is None]
                raise Failure(
                    "key.not_found",
                    f"there is no key {word!r}.{did_you_mean(word, known)}",
                    hint="`slice key list` shows all",
                )
            if await store.revoke(connection, key.kid):
                await self._events.record(connection, _happening("key_revoked", key.kid, f"key {key.name} was revoked"))
                key = await store.find(connection, key.kid) or key
        self._wakeups.wake("key_revoked")
        return key


def _happening(kind: str, kid: str, message: str) -> Happening:
    return Happening(kind=kind, subject_kind=Subject.KEY, subject=kid, message=message)
