"""Writes what the nodes say into the tables, before anything is decided from them.

Comes in: the fleet's observations and lease states. Goes out: mirrored replicas, pulls, files, engines, node states,
events. Each observation is whole and replaces what was known: one that could not be written (no database) is written
later.
"""

from collections.abc import Mapping, Sequence

import psycopg
from psycopg import errors as pg

from controller.deployments.service import Deployments
from controller.engines.service import EngineInstallations
from controller.fleet import store as fleet_store
from controller.fleet.brake import Brake, sentence
from controller.fleet.model import NodeNow
from controller.fleet.store import HeldNode
from controller.leadership import Leadership
from controller.reconcile.lifecycle import is_past_lease
from controller.registry.adopted import AdoptedModels
from controller.registry.copies import Copies
from controller.registry.pulls import Pulls
from core.events import Happening, Subject
from core.ids import NodeId
from core.infra import postgres
from core.infra.logs import Log
from core.ports import EventLog
from core.states import NodeState

TOGETHER = 25
"""Nodes whose words are written in one transaction; each waits for all of them."""


class Absorb:
    """Remembers which observation of each node has been written; forgetting it only costs writing it again."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        leadership: Leadership,
        deployments: Deployments,
        pulls: Pulls,
        copies: Copies,
        engines: EngineInstallations,
        adopted: AdoptedModels,
        events: EventLog[postgres.Connection],
        lost_s: float,
        log: Log,
    ) -> None:
        self._database = database
        self._leadership = leadership
        self._deployments = deployments
        self._pulls = pulls
        self._copies = copies
        self._engines = engines
        self._adopted = adopted
        self._events = events
        self._lost_s = lost_s
        self._log = log
        self._written: dict[NodeId, tuple[int, int]] = {}
        self._states: dict[NodeId, tuple[NodeState, bool]] = {}
        self._rivals: dict[NodeId, int] = {}
        self._is_braked = False

    async def write(self, live: Mapping[NodeId, NodeNow], brake: Brake = Brake()) -> None:  # noqa: B008 - frozen
        """Write every observation, node state and turn of the brake that has not been written.

        Raises:
            LeadershipLostError: another controller reigns.
            Failure: `storage.unavailable`.
        """
        for node_id in self._written.keys() - live.keys():  # forgotten: one that joins again counts from the start
            del self._written[node_id]
            self._states.pop(node_id, None)
        if brake.is_on != self._is_braked:
            await self._tell(_brake_happening(brake, len(live)))
            self._is_braked = brake.is_on
        due = []
        for node_id, node in live.items():
            if node.rivals > self._rivals.get(node_id, 0):
                await self._tell(_rival_happening(node))
                self._rivals[node_id] = node.rivals
            if self._written.get(node_id) != _mark(node) or self._states.get(node_id) != self._state(node):
                due.append(node)
        # In the order in which everybody holds the rows of several nodes.
        due.sort(key=lambda node: node.node_id)
        for begin in range(0, len(due), TOGETHER):
            await self._write_some(due[begin : begin + TOGETHER])

    async def _write_some(self, nodes: Sequence[NodeNow]) -> None:
        try:
            await postgres.repeated(lambda: self._in_one(nodes))
        except (psycopg.DataError, pg.CheckViolation) as error:
            # One node's words must not keep what the others say, and every decision, waiting: its next may fit.
            if len(nodes) > 1:
                for node in nodes:
                    await self._write_some([node])
                return
            self._log.error("node_report_unwritable", node=nodes[0].name, exc=error)
        for node in nodes:
            self._written[node.node_id], self._states[node.node_id] = _mark(node), self._state(node)

    async def _in_one(self, nodes: Sequence[NodeNow]) -> None:
        async with self._database.transaction() as connection:
            await self._leadership.fence(connection)
            held = await fleet_store.held(connection, [node.node_id for node in nodes])
            for node in nodes:
                row = held.get(node.node_id)
                if row is not None:  # else forgotten in this moment
                    await self._write_one(connection, node, row)

    def _state(self, node: NodeNow) -> tuple[NodeState, bool]:
        return node.state, is_past_lease(node, self._lost_s)

    async def _tell(self, happening: Happening) -> None:
        async with self._database.transaction() as connection:
            await self._leadership.fence(connection)
            await self._events.record(connection, happening)

    async def _write_one(self, connection: postgres.Connection, node: NodeNow, row: HeldNode) -> None:
        # Before it is heard of or lost, what was recorded of a node stands: a controller's restart is not its event.
        if (node.is_heard or node.state is NodeState.LOST) and row.state != node.state.value:
            await fleet_store.set_state(connection, node.node_id, node.state.value)
            await self._events.record(connection, _happening(node))
        if is_past_lease(node, self._lost_s):
            await self._deployments.lose(connection, node.node_id, node.name)
            return
        was_lost = self._states.get(node.node_id, (None, False))[1]
        is_changed = self._written.get(node.node_id) != _mark(node)
        # What it says counts when somebody has approved it: its mark grows then.
        if node.observation is None or not node.is_heard or not (is_changed or was_lost) or not row.is_approved:
            return
        is_applied = node.observation.applied_generation >= row.generation > 0
        await self._deployments.absorb(connection, node.observation, is_applied=is_applied)
        if node.observation.engines:
            await fleet_store.set_engines(connection, node.node_id, node.observation.engines)
            await self._adopted.absorb(connection, node.name, node.observation.engines)
            if is_applied:
                await self._engines.absorb(connection, node.node_id, node.observation.engines)
        await self._pulls.absorb(connection, node.node_id, node.observation.files)
        await self._copies.absorb(connection, node.node_id, node.observation.files)


def _mark(node: NodeNow) -> tuple[int, int]:
    return node.session_epoch, node.observed_version


_SENTENCES: Mapping[NodeState, str] = {
    NodeState.READY: "is ready",
    NodeState.SUSPECT: "has not been heard of for a while: it gets no new replica and no new request",
    NodeState.LOST: "is lost: silent past its lease",
    NodeState.OFFLINE: "is offline: its node agent said goodbye",
}


def _happening(node: NodeNow) -> Happening:
    return Happening(
        kind=f"node_{node.state.value}",
        subject_kind=Subject.NODE,
        subject=node.name,
        message=f"node {node.name} {_SENTENCES[node.state]}",
        data={"node_id": node.node_id},
    )


def _rival_happening(node: NodeNow) -> Happening:
    return Happening(
        kind="node_identity_conflict",
        subject_kind=Subject.NODE,
        subject=node.name,
        message=f"another machine came with the identity of node {node.name} and was refused: a copied data directory "
        "or a cloned virtual machine",
        data={"node_id": node.node_id, "times": node.rivals},
    )


def _brake_happening(brake: Brake, nodes: int) -> Happening:
    kind, message = "node_brake_released", "the brake is released: replicas of lost nodes are placed anew"
    if brake.is_on:
        kind, message = "node_brake", sentence(brake, nodes)
    return Happening(kind=kind, subject_kind=Subject.CLUSTER, subject="nodes", message=message)
