"""PostgreSQL's stand-in: rows as the stores read them, transactions that are whole or nothing, and its own clock.

The statements of `controller.leadership`, `controller.fleet.store`, `controller.deployments.store` and
`controller.reconcile.store` that decide something are here as plain Python; their real twins have tests of their own.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from controller.deployments.mirror import Change
from controller.deployments.model import Deployment, Replica
from controller.fleet.model import NodeRow
from controller.leadership import LEASE_S
from core.errors import Failure
from core.states import OCCUPYING, Desired, ReplicaState
from tests.scenarios.world import EPOCH, World


class LeadershipLost(Exception):
    """The fence of a writing transaction: another one reigns."""


class Database:
    """Tables and the leader's row. Every write goes through `fenced`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.is_up = True
        self.epoch, self.holder, self.expires_at = 0, "", -1.0
        self.nodes: dict[str, NodeRow] = {}
        self.capacity: dict[str, int] = {}
        self.deployments: dict[str, Deployment] = {}
        self.replicas: dict[str, Replica] = {}
        self.by_node: dict[str, dict[str, Replica]] = {}
        """The same rows by their nodes, as an index has them."""
        self.writes: dict[str, int] = {}
        """How often a row of each node was written: what was made of the rows of a node holds until then."""
        self.registered: set[str] = set()
        self.touched: set[str] = set()
        self._ids = 0

    def reach(self) -> None:
        """Raise what the pool raises without a server."""
        if not self.is_up:
            raise Failure("storage.unavailable", "the database does not answer")

    def acquire(self, holder: str) -> int | None:
        """Begin a reign, or return None while another one lasts."""
        self.reach()
        if holder != self.holder and self.expires_at >= self._world.now:
            return None
        self.epoch, self.holder, self.expires_at = self.epoch + 1, holder, self._world.now + LEASE_S
        self._world.say(f"{holder} reigns in epoch {self.epoch}")
        return self.epoch

    def renew(self, holder: str, epoch: int) -> None:
        """Prolong the lease of a reign."""
        self.reach()
        if self._world.fences.leader_epoch and (epoch, holder) != (self.epoch, self.holder):
            raise LeadershipLost
        if epoch == self.epoch:
            self.expires_at = self._world.now + LEASE_S

    def fenced(self, epoch: int) -> None:
        """Begin a writing transaction of a reign."""
        self.reach()
        if epoch != self.epoch:
            if self._world.fences.leader_epoch:
                raise LeadershipLost
            self._world.violated("no write by a stale leader", f"epoch {epoch} writes in the reign {self.epoch}")

    # -- nodes ----------------------------------------------------------------------------------------------------

    def upsert_node(self, row: NodeRow, total_bytes: int) -> NodeRow:
        """Write a hello and count its session."""
        self.reach()
        before = self.nodes.get(row.node_id)
        kept = row if before is None else replace(before, boot_id=row.boot_id, session_epoch=before.session_epoch + 1)
        self.nodes[row.node_id], self.capacity[row.node_id] = kept, total_bytes
        return kept

    def set_desired(self, epoch: int, node_id: str, generation: int, digest: str) -> bool:
        """Number a desired set; False when that number is not above the last."""
        self.fenced(epoch)
        row = self.nodes[node_id]
        if row.generation >= generation:
            return False
        self.nodes[node_id] = replace(row, generation=generation, desired_digest=digest)
        return True

    # -- replicas -------------------------------------------------------------------------------------------------

    def start(self, epoch: int, deployment_id: str, generation: int, node_id: str, promises: dict[str, int]) -> bool:
        """Place a replica, unless the deployment has moved on."""
        self.fenced(epoch)
        deployment = self.deployments.get(deployment_id)
        if deployment is None or deployment.is_deleting or deployment.spec_generation != generation:
            return False
        self._ids += 1
        instant = EPOCH + timedelta(seconds=self._world.now)
        row = Replica(
            replica_id=f"rep_{self._ids:06}",
            deployment_id=deployment_id,
            version_id="ver_1",
            version=1,
            spec_generation=generation,
            node_id=node_id,
            engine="fake",
            engine_version="1",
            settings={},
            promises=promises,
            created_at=instant,
            state_since=instant,
            drain_since=None,
            **_UNBORN,
        )
        self._put(row)
        self.touched.add(node_id)
        self._world.say(f"{row.replica_id} of {deployment_id} is placed on {node_id}")
        return True

    def wish(self, epoch: int, replica_id: str, before: str, desired: Desired) -> bool:
        """Move what is wanted of a replica."""
        self.fenced(epoch)
        row = self.replicas.get(replica_id)
        if row is None or row.desired != before:
            return False
        since = row.drain_since or EPOCH + timedelta(seconds=self._world.now)
        self._put(replace(row, desired=desired.value, drain_since=since))
        self._world.say(f"{replica_id} on {row.node_id} shall {desired.value}")
        return True

    def mirror(self, epoch: int, row: Replica, change: Change) -> None:
        """Write what a node says of a replica."""
        self.fenced(epoch)
        values: dict[str, Any] = {name: getattr(change, name) for name in _MIRRORED}
        self._put(replace(row, state=change.state.value, **values))
        self.touched.add(row.node_id)

    def forget(self, epoch: int, replica_id: str) -> bool:
        """Delete the row of a stopped replica."""
        self.fenced(epoch)
        row = self.replicas.get(replica_id)
        if row is None or row.desired != Desired.STOP.value:
            return False
        del self.replicas[replica_id], self.by_node[row.node_id][replica_id]
        self.writes[row.node_id] += 1
        return True

    def _put(self, row: Replica) -> None:
        self.replicas[row.replica_id] = self.by_node.setdefault(row.node_id, {})[row.replica_id] = row
        self.writes[row.node_id] = self.writes.get(row.node_id, 0) + 1

    def promised(self, node_ids: set[str]) -> dict[str, int]:
        """Return the bytes that are promised on the device of each of these nodes."""
        return {
            node_id: sum(
                row.promises["gpu0"]
                for row in self.by_node.get(node_id, {}).values()
                if ReplicaState(row.state) in OCCUPYING
            )
            for node_id in sorted(node_ids)
        }


_MIRRORED = ("incarnation", "restarts", "pid", "host", "port", "load_s", "code", "message", "log_tail", "base_url")
_UNBORN: dict[str, Any] = {
    "state": "assigned",
    "desired": "run",
    "incarnation": 0,
    "restarts": 0,
    "pid": 0,
    "host": "",
    "port": 0,
    "load_s": 0.0,
    "code": "",
    "message": "",
    "log_tail": (),
}
