"""What happened in the cluster, for people and for followers.

Comes in: happenings from every service, through `core.ports.EventLog`. Goes out: pages of events, and an endless
stream for `slice events --follow`. The bell rings after each commit; it only says "look again".
"""

import asyncio
from collections.abc import AsyncIterator

from controller.ledger import store
from controller.ledger.model import Event
from core.events import Happening
from core.infra import postgres

FOLLOW_CHECK_S = 5.0
"""A follower looks at least so often, should another process have written."""


class Bell:
    """Wakes every follower at once; `ring` is called after commits."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake whoever waits now."""
        self._event.set()
        self._event = asyncio.Event()

    def ticket(self) -> asyncio.Event:
        """Return the event of the next ring; take it before reading what the ring is about."""
        return self._event


class Ledger:
    """Implements `core.ports.EventLog` on the table `controller.event`."""

    def __init__(self, database: postgres.Database, bell: Bell) -> None:
        self._database = database
        self._bell = bell
        self.recorded = 0

    async def record(self, connection: postgres.Connection, *happenings: Happening) -> None:
        """Append `happenings` through `connection`, so that they commit or vanish with its transaction."""
        if happenings:
            await store.insert(connection, happenings)
            self.recorded += len(happenings)

    async def page(self, after: int, limit: int) -> list[Event]:
        """Return at most `limit` events after seq `after`, oldest first.

        Raises:
            Failure: `storage.unavailable`.
        """
        async with self._database.connection() as connection:
            return await store.select(connection, after, limit)

    async def follow(self, after: int) -> AsyncIterator[Event]:
        """Yield events after seq `after` as they commit, until the caller goes away.

        Raises:
            Failure: `storage.unavailable`.
        """
        while True:
            ticket = self._bell.ticket()
            events = await self.page(after, 500)
            for event in events:
                after = event.seq
                yield event
            if not events:
                try:
                    async with asyncio.timeout(FOLLOW_CHECK_S):
                        await ticket.wait()
                except TimeoutError:
                    continue
