"""The Protocols through which parts that may not import each other meet."""

from typing import Protocol, TypeVar

from core.events import Happening

Connection = TypeVar("Connection", contravariant=True)


class EventLog(Protocol[Connection]):
    """Writes what happened in the transaction that made it true; the controller's ledger implements it."""

    async def record(self, connection: Connection, *happenings: Happening) -> None:
        """Append `happenings` through `connection`, so that they commit or vanish with its transaction."""


class Wakeups(Protocol):
    """How a service tells the reconcile loop that something changed."""

    def wake(self, reason: str) -> None:
        """Ask for a pass soon; several calls before it starts become one."""
