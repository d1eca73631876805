"""The Protocols through which parts that may not import each other meet."""

from typing import Protocol, TypeVar

from core.events import Happening
from core.ids import ModelName, VersionId
from core.states import Stage

Connection = TypeVar("Connection", contravariant=True)


class EventLog(Protocol[Connection]):
    """Writes what happened in the transaction that made it true; the controller's ledger implements it."""

    async def record(self, connection: Connection, *happenings: Happening) -> None:
        """Append `happenings` through `connection`, so that they commit or vanish with its transaction."""


class Wakeups(Protocol):
    """How a service tells the reconcile loop that something changed."""

    def wake(self, reason: str) -> None:
        """Ask for a pass soon; several calls before it starts become one."""


class StageGate(Protocol[Connection]):
    """Who else has a say when a version moves to another stage; without one every allowed move passes."""

    async def objection(
        self, connection: Connection, *, model: ModelName, number: int, version_id: VersionId, to: Stage
    ) -> str:
        """Return why the version may not go to `to`, "" when it may.

        Called in the transaction of the move: it may read through `connection`, and must not reach the network.
        """
