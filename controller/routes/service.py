"""The route table as it is published, and the doors that follow it.

Comes in: tables from the reconcile loop, reports from doors. Goes out: numbered tables to every watching door, and
whether replicas that left the table are drained. Versions grow for ever: `leader_epoch << 32 | counter`, so that a new
reign's first table is above the last one of any reign before.
"""

import asyncio

from controller.routes.doors import Doors
from controller.routes.model import DoorNow, DoorReport, PublishedTable, Table
from core.clock import Clock
from core.ids import ReplicaId
from core.ports import Wakeups


class Routes:
    """The one published table; no table at all until the first pass of this reign has read the database."""

    def __init__(self, *, clock: Clock, wakeups: Wakeups, leader_epoch: int) -> None:
        self._clock = clock
        self._wakeups = wakeups
        self._epoch = leader_epoch
        self._counter = 0
        self._published: PublishedTable | None = None
        self._changed = asyncio.Event()
        self._reported = asyncio.Event()
        self._doors = Doors(clock.monotonic())
        self.demand: dict[str, int] = {}

    @property
    def published(self) -> PublishedTable | None:
        """The newest table."""
        return self._published

    @property
    def version(self) -> int:
        """The newest table's version, 0 when there is none."""
        return self._published.version if self._published else 0

    def publish(self, table: Table, unrouted: frozenset[ReplicaId]) -> int:
        """Publish `table` if it differs from the last and return the version; `unrouted` replicas are draining."""
        if self._published is None or self._published.table != table:
            self._counter += 1
            version = self._epoch << 32 | self._counter
            self._published = PublishedTable(version=version, table=table)
            self._changed.set()
            self._changed = asyncio.Event()
        self._doors.unrouted(unrouted, self.version)
        return self.version

    async def next_after(self, version: int) -> PublishedTable:
        """Return the newest table when its version differs from `version`, waiting until there is one."""
        while self._published is None or self._published.version == version:
            await self._changed.wait()
        return self._published

    def report(self, report: DoorReport) -> None:
        """Take in what a door says."""
        # Only names of the table: others come from strangers and would grow the mapping without bound.
        known = {route.public_name for route in self._published.table.routes} if self._published else set()
        for name in known & report.demand.keys():
            self.demand[name] = self.demand.get(name, 0) + report.demand[name]
        if self._doors.report(report, self._clock.monotonic()):
            self._wakeups.wake("door_report")
        self._reported.set()
        self._reported = asyncio.Event()

    def tick(self) -> None:
        """Forget doors past their lease; called every second or so."""
        if self._doors.expire(self._clock.monotonic()):
            self._wakeups.wake("door_expired")
            self._reported.set()
            self._reported = asyncio.Event()

    async def wait_applied(self, version: int, timeout_s: float) -> bool:
        """Wait until every living door serves by `version`, at most `timeout_s`; return whether they do."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._doors.have_applied(version):
                    await self._reported.wait()
        except TimeoutError:
            return False
        return True

    def is_drained(self, replica_id: ReplicaId) -> bool:
        """Return whether no living door can still send to a replica that was unrouted."""
        return self._doors.is_drained(replica_id, self._clock.monotonic())

    def in_flight(self) -> dict[ReplicaId, int]:
        """Return the streams per replica, over all doors."""
        return self._doors.in_flight()

    def doors(self) -> tuple[DoorNow, ...]:
        """Return every living door."""
        return self._doors.now(self._clock.monotonic())
