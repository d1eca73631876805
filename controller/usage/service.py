"""What requests used: rows come in from doors, sums go out.

Comes in: rows of doors, each once or more often. Goes out: sums for the admin API. Called by the servicer of doors and
the REST routes. Rows are kept until somebody deletes them.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from controller.usage import store
from controller.usage.model import By, Sum, UsageRow
from core.clock import Clock
from core.errors import Failure
from core.infra import postgres

DEFAULT_SPAN = timedelta(hours=24)
MAX_GROUPS = 1000
"""Most groups of one answer; those with the fewest requests are left out."""


class Usage:
    """Usage of all requests; the counts are of this reign."""

    def __init__(self, *, database: postgres.Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.rows = 0
        self.lost = 0

    async def take(self, rows: Sequence[UsageRow], lost: int = 0) -> int:
        """Store `rows` and return how many were new; `lost` more were given up by their door.

        Raises:
            Failure: `storage.unavailable`.
        """
        new = 0
        if rows:
            # Not `transaction`: nobody follows usage, and each batch would wake those who follow events.
            async with self._database.connection() as connection:
                new = await store.insert(connection, rows)
        self.rows += new
        self.lost += lost
        return new

    async def sums(self, by: By, *, since: datetime | None, until: datetime | None) -> list[Sum]:
        """Return the sums of the requests that began in [since, until); by default of the last 24 hours.

        Raises:
            Failure: `request.out_of_range` when `since` is not before `until`, `storage.unavailable`.
        """
        until = until or self._clock.now()
        since = since or until - DEFAULT_SPAN
        if since >= until:
            raise Failure("request.out_of_range", "'since' must be before 'until'", param="since")
        async with self._database.connection() as connection:
            return await store.sums(connection, by, since=since, until=until, limit=MAX_GROUPS)
