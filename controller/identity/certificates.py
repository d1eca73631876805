"""Certificates: issued to nodes, doors and the controller itself, recorded by serial, revoked.

Comes in: requests whose asker is known already. Goes out: certificates, and the answer whether one is revoked, from
memory: it is asked at every call. Whoever may have what is decided by the callers (`joining`, the gRPC edge).
"""

import asyncio
from collections.abc import Callable

from controller.identity import certificate_store as store
from controller.identity.authority import AuthorityFiles
from controller.identity.brake import Brake
from core.clock import Clock
from core.errors import Failure
from core.identities import Identity, Role
from core.infra import certificates, postgres
from core.infra.certificates import LIFETIME, Issued

REMEMBERED_S = LIFETIME.total_seconds() + 3600.0
"""A revoked certificate is dead by itself after so long."""
ASKED_PER_HOUR = 30
"""Certificates of one holder: each is a signature and a row. One is renewed twice a day."""


class Certificates:
    """The one owner of what the cluster's authority has signed."""

    def __init__(
        self, *, database: postgres.Database, authority: AuthorityFiles, clock: Clock, cluster_id: str
    ) -> None:
        self._database = database
        self._clock = clock
        self._revoked: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._brake = Brake(limit=ASKED_PER_HOUR, window_s=3600.0)
        self._watchers: dict[str, list[Callable[[], None]]] = {}
        self.authority = authority
        self.cluster_id = cluster_id

    async def load(self) -> None:
        """Read what is revoked, and forget what ended long ago.

        Raises:
            Failure: `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            await store.sweep(connection)
            self._forbid(await store.revoked(connection))

    def identity(self, role: Role, name: str) -> Identity:
        """Return how a process of this cluster is named."""
        return Identity(cluster_id=self.cluster_id, role=role, name=name)

    async def renew(self, csr_pem: str, identity: Identity, *, by: str = "") -> Issued:
        """Return the next certificate of somebody who needs no token, as often as one has a reason to ask.

        `by` is the serial of the certificate that it is asked with, if it is asked with one.

        Raises:
            Failure: `node.certificate_limited`; `node.certificate_invalid` when `by` was revoked; as for `issue`.
        """
        now = self._clock.monotonic()
        wait_s = self._brake.wait_s(identity.uri, now)
        if wait_s > 0:
            raise Failure(
                "node.certificate_limited",
                f"{identity.uri} has asked for {ASKED_PER_HOUR} certificates within an hour",
                hint="one lasts a day: it belongs into a file",
                retry_after_s=wait_s,
            )
        self._brake.note(identity.uri, now)
        async with self._database.transaction() as connection:
            await store.take_turn(connection, identity.role.value, identity.name)
            if by and await store.is_revoked(connection, by):
                raise Failure("node.certificate_invalid", f"the certificate of {identity.uri} was revoked")
            return await self.issue(csr_pem, identity, connection=connection)

    async def issue(self, csr_pem: str, identity: Identity, *, connection: postgres.Connection | None = None) -> Issued:
        """Return a certificate for `identity` and record it, in the transaction of `connection` if there is one.

        Raises:
            Failure: `node.csr_refused`; `cluster.data_dir_unusable` without an authority; `storage.unavailable`.
        """
        authority = await self.authority.get()
        given = await asyncio.to_thread(certificates.issued, authority, csr_pem, identity, self._clock.now())
        async with self._database.work(connection) as work:
            await store.insert(
                work, serial=given.serial, role=identity.role.value, subject=identity.name, expires_at=given.expires_at
            )
        return given

    async def revoke(self, connection: postgres.Connection, role: Role, name: str) -> frozenset[str]:
        """Revoke all that a process has, in the transaction of `connection`; give what returns to `forbid` after it.

        Raises:
            Failure: `storage.unavailable`.
        """
        return await store.revoke(connection, role.value, name)

    def forbid(self, serials: frozenset[str]) -> None:
        """Refuse `serials` from now on, end what they began, and let the data planes know."""
        self._forbid(serials)

    def _forbid(self, serials: frozenset[str]) -> None:
        now = self._clock.monotonic()
        news = serials - self._revoked.keys()
        living = {serial: at for serial, at in self._revoked.items() if now - at < REMEMBERED_S}
        self._revoked = {**living, **dict.fromkeys(news, now)}
        for serial in news:
            for end in tuple(self._watchers.get(serial, ())):
                end()
        if news:
            self._changed.set()
            self._changed = asyncio.Event()

    def is_revoked(self, serial: str) -> bool:
        """Return whether a certificate must not be trusted any more."""
        return serial in self._revoked

    @property
    def revoked(self) -> frozenset[str]:
        """The serials that must not be trusted any more and may be valid otherwise."""
        return frozenset(self._revoked)

    async def next_revoked(self, told: frozenset[str] | None) -> frozenset[str]:
        """Return the revoked serials once there are others than those that were `told`; None: at once."""
        while told is not None and self.revoked <= told:
            await self._changed.wait()
        return self.revoked

    def watch(self, serial: str, end: Callable[[], None]) -> Callable[[], None]:
        """Have `end` called when `serial` is revoked; call what returns when that is no longer of interest."""
        self._watchers.setdefault(serial, []).append(end)

        def unwatch() -> None:
            watchers = self._watchers[serial]
            watchers.remove(end)
            if not watchers:
                del self._watchers[serial]

        return unwatch
