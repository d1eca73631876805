"""A machine joins: its token is burned, it becomes a node, it gets its certificate; all in one transaction, or nothing.

Comes in: a wish from the join port, from anybody who reaches it. Goes out: a certificate, or a refusal under a code of
its own that stands in the ledger, without the secret. Whoever fails often is not listened to for a while.
"""

import hmac
import re
from datetime import UTC, datetime
from typing import Protocol

from controller.exchange import Newcomer
from controller.identity import token_store as store
from controller.identity.brake import Brake
from controller.identity.certificates import Certificates
from controller.identity.model import Joined, JoinToken, JoinWish
from core.clock import Clock
from core.errors import Failure, Kind
from core.events import Happening, Subject
from core.identities import Role
from core.ids import NodeId
from core.infra import postgres
from core.infra.certificates import key_digest
from core.joining import secret_digest
from core.names import NAME_PATTERN, checked_name
from core.ports import EventLog

FAILURES_PER_MINUTE = 10
"""Of one address; a person who mistypes needs three."""
RECORDED_PER_MINUTE = 60
"""Refusals in the ledger, of all addresses together: a flood is told of, not written down."""
_NODE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


class Members(Protocol):
    """Who knows the nodes that there are; the fleet."""

    def protocol_fault(self, protocol_min: int, protocol_max: int) -> Failure | None:
        """Return why a node agent that speaks these protocols cannot join, or None when it can."""

    async def known(self, connection: postgres.Connection, node_id: NodeId) -> Newcomer | None:
        """Return what a node joined as, or None when there is no such node."""

    async def admit(self, connection: postgres.Connection, newcomer: Newcomer) -> None:
        """Make a node of `newcomer`, or find it again, in the transaction of `connection`.

        Raises:
            Failure: `node.name_taken`, `node.identity_conflict`.
        """

    async def admitted(self, node_id: NodeId) -> None:
        """Learn that such a transaction has committed."""


class Joining:
    """The one way in."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        events: EventLog[postgres.Connection],
        members: Members,
        certificates: Certificates,
        clock: Clock,
    ) -> None:
        self._database = database
        self._events = events
        self._members = members
        self._certificates = certificates
        self._clock = clock
        self._brake = Brake(limit=FAILURES_PER_MINUTE, window_s=60.0)
        self._recorded = Brake(limit=RECORDED_PER_MINUTE, window_s=60.0)

    async def join(self, wish: JoinWish) -> Joined:
        """Let a machine in.

        Raises:
            Failure: `node.join_limited`, `node.protocol_too_old`, `request.invalid_field`, `request.invalid_name`,
                `node.join_token_invalid`, `node.join_token_used`, `node.join_token_expired`,
                `node.join_name_refused`, `node.name_taken`, `node.identity_conflict`, `node.csr_refused`,
                `storage.unavailable`. Nothing was changed then, the token included.
        """
        wait_s = self._brake.wait_s(wish.address, self._clock.monotonic())
        if wait_s > 0:
            raise Failure(
                "node.join_limited",
                f"{FAILURES_PER_MINUTE} joins from {wish.address} failed within a minute",
                hint=f"look with `slice events` why, then try again in {wait_s:.0f} s",
                retry_after_s=wait_s,
            )
        try:
            _check(wish)
            fault = self._members.protocol_fault(wish.protocol_min, wish.protocol_max)
            if fault is not None:
                raise fault
            return await self._let_in(wish)
        except Failure as failure:
            if failure.kind is not Kind.UNAVAILABLE:
                await self._note(wish, failure)
            raise

    async def _let_in(self, wish: JoinWish) -> Joined:
        authority = await self._certificates.authority.get()
        node_id = NodeId(wish.node_id)
        identity = self._certificates.identity(Role.NODE, node_id)
        key = key_digest(wish.csr_pem)
        async with self._database.transaction() as connection:
            token = await store.token(connection, wish.token_id, is_held=True)
            token = self._usable(token, wish, key)
            newcomer = await self._admitted(connection, wish, token)
            former = await self._certificates.revoke(connection, Role.NODE, node_id)
            given = await self._certificates.issue(wish.csr_pem, identity, connection=connection)
            if await store.burn(connection, token.token_id, node_id, key):
                await self._events.record(connection, _joined(wish, token))
        self._certificates.forbid(former)
        await self._members.admitted(node_id)
        return Joined(
            node_name=newcomer.name,
            is_approved=newcomer.is_approved,
            cluster_id=identity.cluster_id,
            certificate_pem=given.certificate_pem,
            authority_pem=authority.certificate_pem,
        )

    async def _admitted(self, connection: postgres.Connection, wish: JoinWish, token: JoinToken) -> Newcomer:
        if token.used_at is not None:
            again = await self._members.known(connection, NodeId(wish.node_id))
            if again is None:  # forgotten since
                raise _used(token)
            return again
        newcomer = Newcomer(
            node_id=NodeId(wish.node_id),
            name=wish.node_name,
            machine_id=wish.machine_id,
            agent_version=wish.agent_version,
            labels=token.labels,
            is_approved=token.is_approving,
        )
        await self._members.admit(connection, newcomer)
        return newcomer

    def _usable(self, token: JoinToken | None, wish: JoinWish, key: bytes) -> JoinToken:
        """Return the token when `wish` may use it.

        1. Unknown, or another secret: one answer for both, so that nobody finds out which tokens there are.
        2. Used: only the same node with the same key may ask again before its end, as one does whose answer got lost.
           Nobody else gains by it, since the certificate is of no use without that key.
        3. Revoked, expired, or for another name.
        """
        if token is None or not hmac.compare_digest(token.digest, secret_digest(wish.secret)):
            raise Failure(
                "node.join_token_invalid",
                "this join token is not one of this cluster",
                hint="paste the whole line of `slice node token create`, or make a new one",
            )
        now = self._clock.now()
        is_again = (token.used_by_node, token.used_key) == (wish.node_id, key) and now < token.expires_at
        if token.used_at is not None and not is_again:
            raise _used(token)
        if token.used_at is None and token.revoked_at is not None:
            message = f"this join token was revoked at {_instant(token.revoked_at)}"
            raise Failure("node.join_token_invalid", message, hint=_ANOTHER)
        if now >= token.expires_at:
            message = f"this join token expired at {_instant(token.expires_at)}"
            raise Failure("node.join_token_expired", message, hint=_ANOTHER)
        if token.node_name and token.node_name != wish.node_name:
            raise Failure(
                "node.join_name_refused",
                f"this join token is for node {token.node_name}, not {wish.node_name}",
                hint=f"join with `--name {token.node_name}`, or make another token",
            )
        return token

    async def _note(self, wish: JoinWish, failure: Failure) -> None:
        """Count a failed join and write it down."""
        now = self._clock.monotonic()
        self._brake.note(wish.address, now)
        if self._recorded.wait_s("", now) > 0:
            return
        self._recorded.note("", now)
        try:
            async with self._database.transaction() as connection:
                await self._events.record(connection, _refused(wish, failure))
        except Failure:
            return  # without a database nobody joined either; the edge logs the refusal


_ANOTHER = "make another one with `slice node token create`"


def _used(token: JoinToken) -> Failure:
    assert token.used_at is not None, "asked by whoever has seen that"
    return Failure(
        "node.join_token_used",
        f"this join token was used at {_instant(token.used_at)} by node {token.used_by_node}",
        hint="a token works once: make one for each machine with `slice node token create`",
    )


def _instant(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _check(wish: JoinWish) -> None:
    checked_name("node", wish.node_name)
    if not _NODE_ID.match(wish.node_id) or not wish.machine_id:
        raise Failure("request.invalid_field", "node_id and machine_id must be given", param="node_id")


def _joined(wish: JoinWish, token: JoinToken) -> Happening:
    waiting = "" if token.is_approving else "; it waits for `slice node approve`"
    return Happening(
        kind="node_joined",
        subject_kind=Subject.NODE,
        subject=wish.node_name,
        message=f"node {wish.node_name} joined from {wish.address}{waiting}",
        data={"node_id": wish.node_id, "token_id": token.token_id, "machine_id": wish.machine_id},
    )


def _refused(wish: JoinWish, failure: Failure) -> Happening:
    name = wish.node_name if NAME_PATTERN.match(wish.node_name) else "?"
    return Happening(
        kind="node_join_refused",
        subject_kind=Subject.NODE,
        subject=name,
        reason=failure.code,
        message=f"a join from {wish.address} was refused: {failure.message}",
        data={"token_id": wish.token_id, "node_id": wish.node_id},
    )
