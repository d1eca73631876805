"""Who may write decisions: one leader, by a lease row on the database's clock.

Comes in: the database and this process's name as a holder. Goes out: the epoch of this reign. `process` acquires and
renews; `reconcile` and whoever writes a decision calls `fence` inside the transaction. Nothing compares local clocks.
"""

from dataclasses import dataclass

from core.errors import Failure
from core.infra import postgres

LEASE_S = 8.0
"""Time to live of the lease; renewed every `RENEW_S`. Both as in the design notes on leader election."""
RENEW_S = 2.0

_ACQUIRE = """
UPDATE controller.leader
   SET epoch = epoch + 1, holder = %(holder)s, expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
 WHERE holder = %(holder)s OR expires_at < clock_timestamp()
RETURNING epoch
"""
_RENEW = """
UPDATE controller.leader SET expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
 WHERE epoch = %(epoch)s AND holder = %(holder)s
"""
_RELEASE = "UPDATE controller.leader SET expires_at = '-infinity' WHERE epoch = %(epoch)s AND holder = %(holder)s"
_FENCE = "SELECT epoch FROM controller.leader WHERE epoch = %(epoch)s FOR SHARE"


class LeadershipLostError(Exception):
    """Another controller reigns: this one must stop writing and end."""


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    epoch: int


class Leadership:
    """This process's claim to lead; `epoch` is 0 until it does."""

    def __init__(self, database: postgres.Database, holder: str) -> None:
        self._database = database
        self._holder = holder
        self.epoch = 0

    async def acquire(self) -> int:
        """Return the epoch of the reign that begins now.

        A holder of the same name is taken over at once: the process holds a lock on the control socket's directory,
        so its namesake is dead.

        Raises:
            Failure: `controller.not_ready` while another one reigns, `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            row = await postgres.fetch_one(connection, _Epoch, _ACQUIRE, {"holder": self._holder, "lease_s": LEASE_S})
        if row is None:
            raise Failure(
                "controller.not_ready",
                "another controller leads this cluster",
                hint="it is asked again",
                retry_after_s=2,
            )
        self.epoch = row.epoch
        return row.epoch

    async def renew(self) -> None:
        """Prolong the lease.

        Raises:
            LeadershipLostError: another controller has begun a reign.
            Failure: `storage.unavailable`; the reign goes on unless somebody else begins one.
        """
        async with self._database.transaction() as connection:
            count = await postgres.execute(
                connection, _RENEW, {"epoch": self.epoch, "holder": self._holder, "lease_s": LEASE_S}
            )
        if count == 0:
            raise LeadershipLostError

    async def release(self) -> None:
        """End the reign, so that a successor need not wait for the lease to run out."""
        async with self._database.transaction() as connection:
            await postgres.execute(connection, _RELEASE, {"epoch": self.epoch, "holder": self._holder})

    async def fence(self, connection: postgres.Connection) -> None:
        """Hold this reign for the rest of the transaction of `connection`.

        Raises:
            LeadershipLostError: the epoch is no longer ours, so nothing may be written.
        """
        if await postgres.fetch_one(connection, _Epoch, _FENCE, {"epoch": self.epoch}) is None:
            raise LeadershipLostError
