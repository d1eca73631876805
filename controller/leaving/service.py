"""Cordons, drains, moves and forgotten nodes: what operators want of nodes and of replicas that are to leave them.

Comes in: wishes from the admin API. Goes out: marks in rows, events, wake-ups. It places and stops nothing: the
scheduler sees the marks and the reconcile loop acts. Only forgetting deletes rows, since no node is left to report.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from controller.fleet.model import NodeNow
from controller.identity.certificates import Certificates
from controller.leaving import store
from controller.reconcile import picture as pictures
from controller.registry import store as registry_store
from core.clock import Clock
from core.errors import Failure
from core.events import Happening, Subject
from core.identities import Role
from core.ids import NodeId, ReplicaId
from core.infra import postgres
from core.names import did_you_mean
from core.ports import EventLog, Wakeups
from core.states import Desired, NodeState
from scheduler.plan import obstacle


class LiveNodes(Protocol):
    """The nodes as they are now."""

    def nodes(self) -> dict[NodeId, NodeNow]:
        """Return every node."""

    def forget(self, node_id: NodeId, created_at: datetime) -> None:
        """End a node's session and know it no more, unless it has joined again since `created_at`."""


class Leaving:
    """Marks nodes and replicas as leaving, and takes the marks away."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        fleet: LiveNodes,
        certificates: Certificates,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        clock: Clock,
        cpu_reserve_bytes: int,
        own_node_id: Callable[[], str],
    ) -> None:
        self._database = database
        self._fleet = fleet
        self._certificates = certificates
        self._events = events
        self._wakeups = wakeups
        self._clock = clock
        self._cpu_reserve_bytes = cpu_reserve_bytes
        self._own_node_id = own_node_id

    async def cordon(self, word: str) -> None:
        """Let the node `word` (a name or an id) get no more replicas; those it has stay.

        Raises:
            Failure: `node.not_found`, `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            node = await self._node(connection, word)
            if await store.cordon(connection, node.node_id):
                await self._tell_node(connection, node, "node_cordoned", "gets no more replicas")
        self._wakeups.wake("node_cordoned")

    async def uncordon(self, word: str) -> None:
        """Let a node get replicas again; a drain ends, and what has not left it stays.

        Raises:
            Failure: `node.not_found`, `storage.unavailable`.
        """

        async def work() -> None:
            async with self._database.transaction() as connection:
                node = await self._node(connection, word)
                if await store.uncordon(connection, node.node_id):
                    tail = "" if node.drain_since is None else "; its drain has ended, what has not left stays"
                    await self._tell_node(connection, node, "node_uncordoned", f"gets replicas again{tail}")

        await postgres.repeated(work)
        self._wakeups.wake("node_uncordoned")

    async def drain(self, word: str, *, is_forced: bool) -> None:
        """Cordon a node and let everything leave it; `is_forced` also what nothing can take the place of.

        Raises:
            Failure: `node.not_found`, `storage.unavailable`.
        """

        async def work() -> bool:
            async with self._database.transaction() as connection:
                return await self._drain(connection, await self._node(connection, word), is_forced=is_forced)

        if await postgres.repeated(work):
            self._wakeups.wake("node_draining")

    async def drain_itself(self, node_id: NodeId) -> bool:
        """Drain a node on its own word; return False when there is none with this id.

        Raises:
            Failure: `node.in_use` when it is the controller's own; `storage.unavailable`.
        """

        async def work() -> tuple[bool, bool]:
            async with self._database.transaction() as connection:
                node = await store.node_of(connection, node_id)
                if node is None:
                    return False, False
                self._check_may_go(node, is_forced=True)
                return True, await self._drain(connection, node, is_forced=False)

        is_there, is_changed = await postgres.repeated(work)
        if is_changed:
            self._wakeups.wake("node_draining")
        return is_there

    async def _drain(self, connection: postgres.Connection, node: store.HeldNode, *, is_forced: bool) -> bool:
        if not await store.drain(connection, node.node_id, is_forced=is_forced):
            return False
        forced = ", by force" if is_forced else ""
        await self._tell_node(connection, node, "node_draining", f"is drained{forced}")
        if not await store.held(connection, node.node_id):
            await self._tell_node(connection, node, "node_drained", "holds no replica any more")
        return True

    async def move(self, replica_id: str, word: str) -> None:
        """Let a replica leave for the node `word`; a second move goes elsewhere instead.

        Raises:
            Failure: `replica.not_found`, `node.not_found`; `replica.move_refused` with the reason why it cannot move,
                or cannot move there; `storage.unavailable`.
        """
        refused = await self._refusal(replica_id, word)
        async with self._database.transaction() as connection:
            target = await self._node(connection, word)
            replica = await self._replica(connection, replica_id)
            _check_may_move(replica, target)
            if refused is not None:
                raise refused
            if await store.move(connection, replica_id, target.node_id):
                message = f"a replica of {replica.deployment} moves to node {target.name}"
                await self._tell_replica(connection, replica_id, "replica_moving", message, target.name)
        self._wakeups.wake("replica_moving")

    async def _refusal(self, replica_id: str, word: str) -> Failure | None:
        """Return why the node cannot take the replica, in the scheduler's words; None also when one is not there."""
        async with self._database.snapshot() as connection:
            picture = await pictures.read(connection)
        seen = pictures.seen(
            picture, self._fleet.nodes(), now=self._clock.now(), cpu_reserve_bytes=self._cpu_reserve_bytes
        )
        node = next((one for one in seen.nodes if word in (one.name, one.node_id)), None)
        if node is None or all(one.replica_id != replica_id for one in seen.replicas):
            return None
        found = obstacle(seen, ReplicaId(replica_id), node.node_id)
        if found is None:
            return None
        return _refused(f"replica {replica_id} cannot move to node {node.name}: {found.message}", found.hint)

    async def stay(self, replica_id: str) -> None:
        """End a replica's move: it stays, and a successor that is not ready goes.

        Raises:
            Failure: `replica.not_found`; `replica.move_refused` when it does not move, or has been left already;
                `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            replica = await self._replica(connection, replica_id)
            if replica.desired != Desired.RUN.value:
                raise _refused(f"replica {replica_id} is on its way out already", "`slice ps` shows what runs")
            if replica.move_to is None:
                hint = "`slice node uncordon NODE` ends a drain" if replica.is_leaving else "`slice ps` shows what runs"
                raise _refused(f"replica {replica_id} does not move", hint)
            await store.stay(connection, replica_id)
            message = f"a replica of {replica.deployment} does not move any more"
            await self._tell_replica(connection, replica_id, "replica_move_cancelled", message)
        self._wakeups.wake("replica_move_cancelled")

    async def forget(self, word: str, *, is_forced: bool) -> None:
        """Delete a node that will not come back: promises are freed, replicas replaced, certificates revoked.

        Raises:
            Failure: `node.not_found`; `node.in_use` when it is the controller's own, or neither lost nor offline and
                not `is_forced`; `storage.unavailable`.
        """

        async def work() -> tuple[store.HeldNode, frozenset[str]]:
            async with self._database.transaction() as connection:
                node = await self._node(connection, word)
                self._check_may_go(node, is_forced=is_forced)
                return node, await self._forget(connection, node, "node_forgotten", "was forgotten")

        self._forgotten(*await postgres.repeated(work))

    async def leave(self, node_id: NodeId) -> None:
        """Forget a node on its own word, whatever state it is in; nothing happens when there is none with this id.

        Raises:
            Failure: `node.in_use` when it is the controller's own; `storage.unavailable`.
        """

        async def work() -> tuple[store.HeldNode, frozenset[str]] | None:
            async with self._database.transaction() as connection:
                node = await store.node_of(connection, node_id)
                if node is None:
                    return None
                self._check_may_go(node, is_forced=True)
                return node, await self._forget(connection, node, "node_left", "has left the cluster")

        done = await postgres.repeated(work)
        if done is not None:
            self._forgotten(*done)

    async def _forget(
        self, connection: postgres.Connection, node: store.HeldNode, kind: str, sentence: str
    ) -> frozenset[str]:
        gone = await store.forget(connection, node.node_id)
        serials = await self._certificates.revoke(connection, Role.NODE, node.node_id)
        await registry_store.sweep(connection)
        for replica_id in gone:
            message = f"a replica is gone with node {node.name}, which {sentence}"
            await self._tell_replica(connection, replica_id, "replica_gone", message)
        await self._tell_node(connection, node, kind, sentence)
        return serials

    def _forgotten(self, node: store.HeldNode, serials: frozenset[str]) -> None:
        self._fleet.forget(NodeId(node.node_id), node.created_at)  # first: it says why the session ends
        self._certificates.forbid(serials)
        self._wakeups.wake("node_forgotten")

    async def is_known(self, node_id: NodeId) -> bool:
        """Return whether there is a node with this id.

        Raises:
            Failure: `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            return await store.node_of(connection, node_id) is not None

    async def expiries(self) -> dict[str, datetime]:
        """Return when the newest certificate of each node ends, by node id.

        Raises:
            Failure: `storage.unavailable`.
        """
        async with self._database.connection() as connection:
            return {one.node_id: one.expires_at for one in await store.expiries(connection)}

    def _check_may_go(self, node: store.HeldNode, *, is_forced: bool) -> None:
        if node.node_id == self._own_node_id():
            raise Failure(
                "node.in_use",
                f"node {node.name} is the controller's own machine",
                hint="`slice down` stops it; `slice node drain` empties it",
            )
        now = self._fleet.nodes().get(NodeId(node.node_id))
        state = NodeState.LOST if now is None else now.state
        if not is_forced and state not in (NodeState.LOST, NodeState.OFFLINE):
            raise Failure(
                "node.in_use",
                f"node {node.name} is {state.value}: only a lost or offline node is forgotten",
                hint="drain it and stop its node agent first; --force forgets it all the same, and what runs there "
                "runs on unwatched until `slice down` on that machine",
            )

    async def _node(self, connection: postgres.Connection, word: str) -> store.HeldNode:
        found = await store.node(connection, word)
        if found is None:
            known = await store.node_names(connection)
            raise Failure(
                "node.not_found",
                f"there is no node {word!r}.{did_you_mean(word, known)}",
                hint="`slice node list` shows all",
            )
        return found

    async def _replica(self, connection: postgres.Connection, replica_id: str) -> store.HeldReplica:
        found = await store.replica(connection, replica_id)
        if found is None:
            raise Failure("replica.not_found", f"there is no replica {replica_id!r}", hint="`slice ps` shows all")
        return found

    async def _tell_node(self, connection: postgres.Connection, node: store.HeldNode, kind: str, sentence: str) -> None:
        happening = Happening(
            kind=kind,
            subject_kind=Subject.NODE,
            subject=node.name,
            message=f"node {node.name} {sentence}",
            data={"node_id": node.node_id},
        )
        await self._events.record(connection, happening)

    async def _tell_replica(
        self, connection: postgres.Connection, replica_id: str, kind: str, message: str, node: str = ""
    ) -> None:
        happening = Happening(
            kind=kind,
            subject_kind=Subject.REPLICA,
            subject=replica_id,
            message=message,
            data={"node": node} if node else {},
        )
        await self._events.record(connection, happening)


def _check_may_move(replica: store.HeldReplica, target: store.HeldNode) -> None:
    if replica.desired != Desired.RUN.value:
        raise _refused(f"replica {replica.replica_id} is on its way out already", "`slice ps` shows what runs")
    if not replica.is_current:
        message = f"replica {replica.replica_id} is being replaced by one of a newer generation"
        raise _refused(message, "move that one")
    if replica.node_id == target.node_id:
        raise _refused(f"replica {replica.replica_id} is on node {target.name} already", "name another node")


def _refused(message: str, hint: str) -> Failure:
    return Failure("replica.move_refused", message, hint=hint)
