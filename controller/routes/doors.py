"""What the doors say, and whether a replica that left the table is drained: pure but for the mapping it keeps.

Comes in: reports with the monotonic instant they came at. Goes out: `DoorNow`s, in-flight counts, and `is_drained`.
Owned by `controller.routes.service`.
"""

from dataclasses import dataclass

from controller.routes.model import DoorNow, DoorReport
from core.ids import ReplicaId

DOOR_LEASE_S = 10.0
"""A door that has not reported for so long is no longer waited for; doors report every second or two."""


@dataclass(frozen=True, kw_only=True)
class _Door:
    report: DoorReport
    seen_at: float


class Doors:
    """The living doors of the cluster; `now` and `began_at` are monotonic seconds."""

    def __init__(self, began_at: float) -> None:
        self._began_at = began_at
        self._doors: dict[str, _Door] = {}
        self._unrouted_at: dict[ReplicaId, int] = {}

    def report(self, report: DoorReport, now: float) -> bool:
        """Take in a report; return whether it could let a draining replica go."""
        before = self._doors.get(report.door_id)
        self._doors[report.door_id] = _Door(report=report, seen_at=now)
        if before is None or before.report.applied_version != report.applied_version:
            return True
        watched = self._unrouted_at
        return any(before.report.loads.get(one, 0) != report.loads.get(one, 0) for one in watched)

    def expire(self, now: float) -> bool:
        """Forget doors past their lease; return whether there were any."""
        gone = [door_id for door_id, door in self._doors.items() if now - door.seen_at > DOOR_LEASE_S]
        for door_id in gone:
            del self._doors[door_id]
        return bool(gone)

    def unrouted(self, replica_ids: frozenset[ReplicaId], version: int) -> None:
        """Note that the table `version` no longer has `replica_ids`; those noted before keep their version."""
        self._unrouted_at = {one: self._unrouted_at.get(one, version) for one in replica_ids}

    def is_drained(self, replica_id: ReplicaId, now: float) -> bool:
        """Return whether every living door applied a table without the replica and has no stream on it.

        Just after this controller began, doors may still be on their way back: none is then no proof.
        """
        version = self._unrouted_at.get(replica_id)
        if version is None:
            return False
        if not self._doors and now - self._began_at < DOOR_LEASE_S:
            return False
        return all(
            door.report.applied_version >= version and door.report.loads.get(replica_id, 0) == 0
            for door in self._doors.values()
        )

    def have_applied(self, version: int) -> bool:
        """Return whether every living door serves by `version` or a newer one."""
        return all(door.report.applied_version >= version for door in self._doors.values())

    def in_flight(self) -> dict[ReplicaId, int]:
        """Return the streams per replica, over all doors."""
        total: dict[ReplicaId, int] = {}
        for door in self._doors.values():
            for replica_id, count in door.report.loads.items():
                total[replica_id] = total.get(replica_id, 0) + count
        return total

    def now(self, now: float) -> tuple[DoorNow, ...]:
        """Return every living door."""
        return tuple(
            DoorNow(
                door_id=door_id,
                applied_version=door.report.applied_version,
                last_seen_s_ago=max(0.0, now - door.seen_at),
                in_flight=sum(door.report.loads.values()),
            )
            for door_id, door in sorted(self._doors.items())
        )
