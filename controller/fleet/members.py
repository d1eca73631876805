"""Who is a node: machines that join, and their approval.

Comes in: newcomers whom `controller.identity.joining` has found right, approvals of the admin API. Goes out: node rows,
before their first hello, and entries of the live fleet. Implements `controller.identity.joining.Members`.
"""

from controller.exchange import Newcomer
from controller.fleet import member_store as store
from controller.fleet import session
from controller.fleet import store as node_store
from controller.fleet.model import NodeRow
from controller.fleet.service import Fleet
from core.errors import Failure
from core.events import Happening, Subject
from core.ids import NodeId
from core.infra import postgres
from core.names import did_you_mean
from core.ports import EventLog, Wakeups


class Members:
    """The one owner of membership; what a node does as a member is the fleet's."""

    def __init__(
        self, *, database: postgres.Database, fleet: Fleet, events: EventLog[postgres.Connection], wakeups: Wakeups
    ) -> None:
        self._database = database
        self._fleet = fleet
        self._events = events
        self._wakeups = wakeups

    def protocol_fault(self, protocol_min: int, protocol_max: int) -> Failure | None:
        """Return why a node agent that speaks these protocols cannot join, or None when it can."""
        return session.protocol_fault(protocol_min, protocol_max)

    async def known(self, connection: postgres.Connection, node_id: NodeId) -> Newcomer | None:
        """Return what a node joined as, or None when there is no such node.

        Raises:
            Failure: `storage.unavailable`.
        """
        row = await node_store.node(connection, node_id)
        if row is None or row.joined_at is None:
            return None
        return Newcomer(
            node_id=node_id,
            name=row.name,
            machine_id=row.machine_id,
            agent_version=row.agent_version,
            labels=row.labels,
            is_approved=row.is_approved,
        )

    async def admit(self, connection: postgres.Connection, newcomer: Newcomer) -> None:
        """Make a node of `newcomer`, or find it again, in the transaction of `connection`.

        Raises:
            Failure: `node.name_taken`; `node.identity_conflict` for the id of the controller's own machine, of another
                machine that is connected, or of a node that works already when the newcomer would have to wait.
        """
        known = await node_store.node(connection, newcomer.node_id)
        if known is not None:
            living = self._fleet.living(newcomer.node_id)
            if known.joined_at is None or (living is not None and living.machine_id != newcomer.machine_id):
                raise Failure(
                    "node.identity_conflict",
                    f"another machine is connected as node {newcomer.node_id}",
                    hint="a copied data directory? delete its node identity and join again",
                )
            if known.is_approved and not newcomer.is_approved:
                raise Failure(
                    "node.identity_conflict",
                    f"node {newcomer.node_id} was approved already, and this token is for one that waits",
                    hint="join again with a token that was made without --manual, or forget the node first",
                )
        if not await store.admit(connection, newcomer):
            raise Failure(
                "node.name_taken",
                f"another node is called {newcomer.name!r}",
                hint="join with another name (`--name`), or forget that one",
                param="node_name",
            )

    async def admitted(self, node_id: NodeId) -> None:
        """Show a node that has joined, which is offline until it says hello.

        Raises:
            Failure: `storage.unavailable`.
        """
        async with self._database.connection() as connection:
            row = await node_store.node(connection, node_id)
        if row is not None:
            self._fleet.meet(row)

    async def approve(self, word: str) -> NodeRow:
        """Let the node with the name or id `word` work; approving twice changes nothing.

        Raises:
            Failure: `node.not_found`, `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            rows = await node_store.nodes(connection)
            found = next((row for row in rows if word in (row.name, row.node_id)), None)
            if found is None:
                raise Failure(
                    "node.not_found",
                    f"there is no node {word[:80]!r}.{did_you_mean(word, [row.name for row in rows])}",
                    hint="`slice node list` shows all",
                )
            if await store.approve(connection, found.node_id):
                happening = Happening(
                    kind="node_approved",
                    subject_kind=Subject.NODE,
                    subject=found.name,
                    message=f"node {found.name} was approved: it may work",
                    data={"node_id": found.node_id},
                )
                await self._events.record(connection, happening)
            row = await node_store.node(connection, found.node_id)
            assert row is not None, "read in this transaction"
        self._fleet.meet(row)
        self._wakeups.wake("node_approved")
        return row
