"""Writes what the nodes say into the tables, before anything is decided from them.

Comes in: the fleet's observations and lease states. Goes out: mirrored replicas, pulls, files, engines, node states,
events. Each observation is whole and replaces what was known: one that could not be written (no database) is written
later.
"""

from collections.abc import Mapping

import psycopg
from psycopg import errors as pg

from controller.deployments.service import Deployments
from controller.engines.service import EngineInstallations
from controller.fleet import store as fleet_store
from controller.fleet.brake import Brake, sentence
from controller.fleet.model import NodeNow, NodeRow
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
        for node_id, node in live.items():
            if node.rivals > self._rivals.get(node_id, 0):
                await self._tell(_rival_happening(node))
                self._rivals[node_id] = node.rivals
            mark = (node.session_epoch, node.observed_version)
            state = (node.state, is_past_lease(node, self._lost_s))
            if self._written.get(node_id) == mark and self._states.get(node_id) == state:
                continue
            try:
                async with self._database.transaction() as connection:
                    await self._leadership.fence(connection)
                    await self._write_one(connection, node, state, is_changed=self._written.get(node_id) != mark)
            except (psycopg.DataError, pg.CheckViolation) as error:
                # One node's words must not keep what the others say, and every decision, waiting: its next may fit.
                self._log.error("node_report_unwritable", node=node.name, exc=error)
            self._written[node_id], self._states[node_id] = mark, state

    async def _tell(self, happening: Happening) -> None:
        async with self._database.transaction() as connection:
            await self._leadership.fence(connection)
            await self._events.record(connection, happening)

    async def _write_one(
        self, connection: postgres.Connection, node: NodeNow, state: tuple[NodeState, bool], *, is_changed: bool
    ) -> None:
        # Before it is heard of or lost, what was recorded of a node stands: a controller's restart is not its event.
        if (node.is_heard or node.state is NodeState.LOST) and await fleet_store.set_state(
            connection, node.node_id, node.state.value
        ):
            await self._events.record(connection, _happening(node))
        if state[1]:
            await self._deployments.lose(connection, node.node_id, node.name)
            return
        was_lost = self._states.get(node.node_id, (None, False))[1]
        if node.observation is not None and node.is_heard and (is_changed or was_lost):
            row = await _row(connection, node.node_id)
            if row is not None and not row.is_approved:
                return  # what it says counts when somebody has approved it: its mark grows then
            is_applied = row is not None and node.observation.applied_generation >= row.generation > 0
            await self._deployments.absorb(connection, node.observation, is_applied=is_applied)
            if node.observation.engines:
                await fleet_store.set_engines(connection, node.node_id, node.observation.engines)
                await self._adopted.absorb(connection, node.name, node.observation.engines)
                if is_applied:
                    await self._engines.absorb(connection, node.node_id, node.observation.engines)
            await self._pulls.absorb(connection, node.node_id, node.observation.files)
            await self._copies.absorb(connection, node.node_id, node.observation.files)


async def _row(connection: postgres.Connection, node_id: NodeId) -> NodeRow | None:
    return next((row for row in await fleet_store.nodes(connection) if row.node_id == node_id), None)


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
