"""The nodes' stores: what lies there, who needs it, and what may go.

Comes in: wishes from the admin API. Goes out: events, and rows of removals, which the reconcile loop sends to nodes.
A file goes only when no version has it; so neither does a replica, whose version outlives it. What `is_free` says holds
for whoever removes: an operator here, disk pressure in `controller.reconcile.relief`, and for the last look before a
node is told, in `controller.reconcile.dispatch`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.registry import file_store, store
from controller.registry.model import Pull, StoredPlace
from core.clock import Clock
from core.errors import Failure
from core.events import Happening, Subject
from core.infra import postgres
from core.names import did_you_mean
from core.ports import EventLog, Wakeups
from core.units import text_from_bytes

CLOCK_MARGIN = timedelta(minutes=10)
"""How far a node's clock may be behind ours: "last used" is the node's word, "begun" ours."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What goes, or would go, and what is unused but too young or wanted by a pull."""

    items: tuple[StoredPlace, ...]
    kept: tuple[StoredPlace, ...]

    @property
    def total_bytes(self) -> int:
        """What becomes free."""
        return sum(place.size_bytes for place in self.items)


def is_free(place: StoredPlace, pulls: Iterable[Pull]) -> bool:
    """Return whether nothing needs a file of a store.

    1. A version has it: it stays.
    2. A pull that has not ended names its digest: it stays.
    3. A pull that has not ended works on this node, and the file was stored or used since it began: it may be one of
       its files, whose version is not registered yet. It stays.
    """
    if place.versions:
        return False
    for pull in pulls:
        if pull.finished_at is not None:
            continue
        if place.sha256 in pull.source:
            return False
        if pull.node_id == place.node_id and place.used_at >= pull.created_at - CLOCK_MARGIN:
            return False
    return True


def collectable(
    stored: Sequence[StoredPlace], pulls: Sequence[Pull], *, now: datetime, older_than_s: float, node: str | None = None
) -> Collected:
    """Return what may go of what `stored` says, of the node named `node` or of all; seconds since the last use."""
    oldest = timedelta(seconds=older_than_s)
    unused = [
        place for place in stored if node in (None, place.node_name) and not place.versions and not place.is_leaving
    ]
    items = tuple(place for place in unused if is_free(place, pulls) and now - place.used_at >= oldest)
    return Collected(items=items, kept=tuple(place for place in unused if place not in items))


class Stores:
    """Reads the nodes' stores and asks nodes to remove files."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        clock: Clock,
    ) -> None:
        self._database = database
        self._events = events
        self._wakeups = wakeups
        self._clock = clock

    async def stored(self, connection: postgres.Connection) -> list[StoredPlace]:
        """Return what every node's store holds."""
        return await file_store.stored(connection)

    async def collect(
        self, node: str | None, *, node_names: Sequence[str], older_than_s: float, is_dry_run: bool
    ) -> Collected:
        """Remove what nothing needs and what was not used for `older_than_s` seconds; `node` None: on all nodes.

        Raises:
            Failure: `node.not_found`, `storage.unavailable`.
        """
        if node is not None and node not in node_names:
            raise Failure(
                "node.not_found",
                f"there is no node {node!r}.{did_you_mean(node, node_names)}",
                hint="`slice node list` shows all",
                param="node",
            )
        async with self._database.transaction() as connection:
            found = collectable(
                await file_store.stored(connection),
                await store.live_pulls(connection),
                now=self._clock.now(),
                older_than_s=older_than_s,
                node=node,
            )
            if is_dry_run or not found.items:
                return found
            await remove(connection, self._events, found.items, "store_collected", "an operator asked for it")
        self._wakeups.wake("store_collected")
        return found


async def remove(
    connection: postgres.Connection,
    events: EventLog[postgres.Connection],
    places: Sequence[StoredPlace],
    kind: str,
    why: str,
) -> int:
    """Ask the nodes to take `places` out of their stores, with an event for each node; return how many are new."""
    asked = 0
    for name in sorted({place.node_name for place in places}):
        of_node = [place for place in places if place.node_name == name]
        count = await file_store.put_removals(connection, of_node[0].node_id, [place.sha256 for place in of_node])
        if not count:
            continue
        asked += count
        size = sum(place.size_bytes for place in of_node)
        files = "1 unused file" if count == 1 else f"{count} unused files"
        happening = Happening(
            kind=kind,
            subject_kind=Subject.NODE,
            subject=name,
            message=f"{files} of {text_from_bytes(size)} leave the store of node {name}: {why}",
            data={"files": [place.sha256 for place in of_node][:100], "bytes": size},
        )
        await events.record(connection, happening)
    return asked
