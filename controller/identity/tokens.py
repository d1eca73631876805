"""Join tokens: made, listed, revoked. What is done with one is `controller.identity.joining`'s.

Comes in: wishes of the admin API. Goes out: tokens, and once the line to paste. The secret leaves this module in that
line alone; stored is its SHA-256.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from controller.identity import token_store as store
from controller.identity.authority import AuthorityFiles
from controller.identity.model import JoinToken, MintedToken
from core.clock import Clock
from core.errors import Failure
from core.events import Happening, Subject
from core.infra import postgres
from core.joining import PIN_DIGITS, JoinLine, secret_digest
from core.names import checked_name, did_you_mean
from core.ports import EventLog

_SECRET_BYTES = 32
_LABEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}\Z")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9._/ -]{0,200}\Z")
_LABELS_MAX = 32
_OWN_LABELS = "container."
"""Labels that begin so are facts which the node agent finds out."""


class Entropy(Protocol):
    """Identifiers and secret bytes."""

    def fresh(self, prefix: str) -> str:
        """Return a new identifier."""

    def token_bytes(self, count: int) -> bytes:
        """Return `count` random bytes."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where other machines reach the controller; `host` is "" when they cannot."""

    host: str
    port: int


class JoinTokens:
    """The one owner of join tokens that were not used yet."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        events: EventLog[postgres.Connection],
        entropy: Entropy,
        clock: Clock,
        authority: AuthorityFiles,
        place: Place,
    ) -> None:
        self._database = database
        self._events = events
        self._entropy = entropy
        self._clock = clock
        self._authority = authority
        self.place = place

    def state(self, token: JoinToken) -> str:
        """Return `used`, `revoked`, `expired` or `usable`, as of now."""
        return token.state(self._clock.now())

    async def all(self) -> list[JoinToken]:
        """Return every token of late, without secrets.

        Raises:
            Failure: `storage.unavailable`.
        """
        async with self._database.connection() as connection:
            return await store.all_tokens(connection)

    async def mint(
        self, *, ttl_s: int, labels: Mapping[str, str], node_name: str = "", is_approving: bool = True
    ) -> MintedToken:
        """Make a token that lets one machine join within `ttl_s` seconds, as `node_name` if one is given.

        Raises:
            Failure: `node.not_listening` when nobody could join; `request.invalid_name`, `request.invalid_field`,
                `storage.unavailable`.
        """
        if not self.place.host:
            raise Failure(
                "node.not_listening",
                "this cluster does not listen for other machines",
                hint="`slice down`, then `slice up --node-host ADDRESS` with this machine's address in your network",
            )
        if node_name:
            checked_name("node", node_name)
        _check_labels(labels)
        authority = await self._authority.get()
        token_id = self._entropy.fresh("jtk")
        secret = base64.urlsafe_b64encode(self._entropy.token_bytes(_SECRET_BYTES)).decode().rstrip("=")
        async with self._database.transaction() as connection:
            await store.insert(
                connection,
                token_id=token_id,
                digest=secret_digest(secret),
                labels=labels,
                node_name=node_name,
                is_approving=is_approving,
                expires_at=self._clock.now() + timedelta(seconds=ttl_s),
            )
            named = f" for node {node_name}" if node_name else ""
            await self._record(connection, "join_token_created", token_id, f"a join token{named} was made")
            made = await store.token(connection, token_id)
            assert made is not None, "inserted in this transaction"
        line = JoinLine(
            host=self.place.host,
            port=self.place.port,
            token_id=token_id,
            secret=secret,
            pin=authority.pin[:PIN_DIGITS],
        )
        return MintedToken(token=made, line=line.text())

    async def revoke(self, token_id: str) -> JoinToken:
        """Revoke a token; one that was used or revoked before stays as it is.

        Raises:
            Failure: `node.join_token_not_found`, `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            if await store.revoke(connection, token_id):
                await self._record(connection, "join_token_revoked", token_id, f"join token {token_id} was revoked")
            found = await store.token(connection, token_id)
            if found is None:
                known = [one.token_id for one in await store.all_tokens(connection)]
                raise Failure(
                    "node.join_token_not_found",
                    f"there is no join token {token_id[:80]!r}.{did_you_mean(token_id, known)}",
                    hint="`slice node token list` shows all",
                )
        return found

    async def _record(self, connection: postgres.Connection, kind: str, token_id: str, message: str) -> None:
        happening = Happening(kind=kind, subject_kind=Subject.JOIN_TOKEN, subject=token_id, message=message)
        await self._events.record(connection, happening)


def _check_labels(labels: Mapping[str, str]) -> None:
    wrong = [key for key, value in labels.items() if not _LABEL_KEY.match(key) or not _LABEL_VALUE.match(value)]
    if wrong or len(labels) > _LABELS_MAX:
        what = f"the label {wrong[0][:80]!r}" if wrong else f"more than {_LABELS_MAX} labels"
        raise Failure(
            "request.invalid_field",
            f"{what} cannot be given to a node",
            hint="a label is KEY=VALUE of letters, digits, '.', '_', '-' and '/', up to 63 and 200 characters",
            param="labels",
        )
    owned = next((key for key in labels if key.startswith(_OWN_LABELS)), None)
    if owned is not None:
        raise Failure("request.invalid_field", f"the label {owned!r} is the node agent's to find out", param="labels")
