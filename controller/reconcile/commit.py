"""Writes what a pass decided, all or nothing, in one transaction that only the leader can commit.

Comes in: a plan and steps made from one picture. Goes out: rows, events, and how many things changed. A deployment that
moved on since the picture makes the whole plan stale: nothing is written and the loop looks again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from controller.deployments.model import Deployment, Replica
from controller.fleet.model import NodeNow
from controller.leadership import Leadership
from controller.reconcile import store
from controller.reconcile.lifecycle import Steps, first_wish
from controller.reconcile.picture import Picture
from controller.registry import store as registry_store
from controller.registry.stores import remove
from core.events import Happening, Subject
from core.ids import IdSource, NodeId
from core.infra import postgres
from core.ports import EventLog
from core.states import Desired
from scheduler.outcome import GivenUp, Plan, Refusal, Start, Stop


class StalePlanError(Exception):
    """What was planned for has changed meanwhile: a normal outcome, look again."""


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One commit: what it reads from while it writes."""

    connection: postgres.Connection
    picture: Picture
    live: Mapping[NodeId, NodeNow]
    deployments: Mapping[str, Deployment]
    replicas: Mapping[str, Replica]
    node_names: Mapping[str, str]


class Commit:
    """The one writer of decisions."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        leadership: Leadership,
        events: EventLog[postgres.Connection],
        ids: IdSource,
        lost_s: float,
    ) -> None:
        self._database = database
        self._leadership = leadership
        self._events = events
        self._ids = ids
        self._lost_s = lost_s

    async def write(self, picture: Picture, live: Mapping[NodeId, NodeNow], plan: Plan, steps: Steps) -> int:
        """Write `plan` and `steps` and return how many rows changed; 0 means that the picture needs no second look.

        Raises:
            StalePlanError: a deployment has moved on since `picture`.
            LeadershipLostError: another controller reigns.
            Failure: `storage.unavailable`; then nothing is known of the commit, and the next pass finds out.
        """
        refusals = _changed_refusals(picture, plan)
        sticking = _changed_stuck(picture, plan)
        is_quiet = plan.is_empty and steps.is_empty and not plan.given_up
        if is_quiet and not refusals and not sticking and not _cured(picture, plan):
            return 0
        async with self._database.transaction() as connection:
            await self._leadership.fence(connection)
            work = _Work(
                connection=connection,
                picture=picture,
                live=live,
                deployments={row.deployment_id: row for row in picture.deployments},
                replicas={row.replica_id: row for row in picture.replicas},
                node_names={row.node_id: row.name for row in picture.nodes},
            )
            changed = 0
            for start in plan.starts:
                changed += await self._start(work, start)
            for stop in plan.stops:
                changed += await self._stop(work, stop)
            changed += await self._steps(work, steps)
            for refusal in refusals:
                changed += await self._refuse(work, refusal)
            for ended in plan.given_up:
                changed += await self._give_up(work, ended)
            for row, stuck in sticking:
                changed += await self._stick(work, row, stuck)
            for deployment_id in _cured(picture, plan):
                await store.cure(connection, deployment_id)
                changed += 1
        return changed

    async def _start(self, work: _Work, start: Start) -> int:
        deployment = work.deployments[start.deployment_id]
        if not await store.hold(work.connection, deployment.deployment_id, deployment.generation):
            raise StalePlanError
        if not await store.hold_node(work.connection, start.node_id):
            raise StalePlanError
        replica_id = self._ids.fresh("rep")
        row = {
            "replica_id": replica_id,
            "deployment_id": start.deployment_id,
            "spec_generation": start.generation,
            "node_id": start.node_id,
            "promises": {str(device): count for device, count in start.promises.items()},
            "succeeds": start.succeeds,
        }
        if not await store.start(work.connection, row):
            raise StalePlanError
        node = work.node_names[start.node_id]
        await self._record(
            work,
            "replica_placed",
            replica_id,
            f"a replica of {deployment.name} was placed on node {node}",
            start.reason,
            {"deployment": deployment.name, "node": node, "promises": row["promises"], "succeeds": start.succeeds},
        )
        return 1

    async def _stop(self, work: _Work, stop: Stop) -> int:
        row = work.replicas[stop.replica_id]
        if row.desired != Desired.RUN.value:
            return 0
        deployment = work.deployments[row.deployment_id]
        if not await store.hold(work.connection, deployment.deployment_id, deployment.generation):
            raise StalePlanError
        desired = first_wish(row, work.live.get(NodeId(row.node_id)), self._lost_s)
        if not await store.wish(work.connection, row, desired.value):
            raise StalePlanError
        verb = "is drained" if desired is Desired.DRAIN else "is stopped"
        await self._record(
            work, f"replica_{desired.value}", row.replica_id, f"a replica of {deployment.name} {verb}", stop.reason, {}
        )
        return 1

    async def _steps(self, work: _Work, steps: Steps) -> int:
        changed = 0
        for row in steps.stops:
            changed += await store.wish(work.connection, row, Desired.STOP.value)
        for row in steps.gone:
            if await store.forget(work.connection, row.replica_id):
                name = work.deployments[row.deployment_id].name
                await self._record(work, "replica_gone", row.replica_id, f"a replica of {name} is gone", "", {})
                changed += 1
        await self._tell_emptied(work, steps)
        for deployment_id in steps.ended:
            if await store.end(work.connection, deployment_id):
                changed += 1
                name = work.deployments[deployment_id].name
                happening = Happening(
                    kind="deployment_deleted",
                    subject_kind=Subject.DEPLOYMENT,
                    subject=name,
                    message=f"deployment {name} is gone",
                )
                await self._events.record(work.connection, happening)
        if steps.ended or steps.gone:
            await registry_store.sweep(work.connection)
        for pull_id, node_id in steps.pulls.items():
            changed += await registry_store.assign_pull(work.connection, pull_id, node_id)
        if steps.relief:
            changed += await remove(
                work.connection, self._events, steps.relief, "store_relieved", "its disk is almost full"
            )
        return changed

    async def _tell_emptied(self, work: _Work, steps: Steps) -> None:
        for node_id in steps.emptied:
            name = work.node_names[node_id]
            happening = Happening(
                kind="node_drained",
                subject_kind=Subject.NODE,
                subject=name,
                message=f"node {name} holds no replica any more",
                data={"node_id": node_id},
            )
            await self._events.record(work.connection, happening)

    async def _refuse(self, work: _Work, refusal: Refusal) -> int:
        row = {
            "deployment_id": refusal.deployment_id,
            "code": refusal.code,
            "message": refusal.message,
            "hint": refusal.hint,
            "nodes": [{"node": one.name, "reason": one.reason} for one in refusal.nodes],
            "cured_by": sorted(refusal.cured_by),
        }
        known = {one.deployment_id: one.code for one in work.picture.refusals}
        deployment = work.deployments[refusal.deployment_id]
        if not await store.hold(work.connection, deployment.deployment_id, deployment.generation):
            raise StalePlanError
        await store.refuse(work.connection, row)
        if known.get(refusal.deployment_id) == refusal.code:
            return 0  # only its numbers moved: no event, and no second look, which would move them again
        happening = Happening(
            kind="placement_refused",
            subject_kind=Subject.DEPLOYMENT,
            subject=deployment.name,
            reason=refusal.code,
            message=refusal.message,
            data={"nodes": row["nodes"]},
        )
        await self._events.record(work.connection, happening)
        return 1

    async def _stick(self, work: _Work, row: Replica, stuck: Mapping[str, object]) -> int:
        if not await store.stick(work.connection, row.replica_id, stuck) or not stuck:
            return 0
        if row.stuck.get("code") == stuck["code"]:
            return 0  # as for a refusal: only its numbers moved
        name = work.deployments[row.deployment_id].name
        message = f"a replica of {name} cannot leave its node: {stuck['message']}"
        await self._record(
            work, "replica_stuck", row.replica_id, message, str(stuck["code"]), {"nodes": stuck["nodes"]}
        )
        return 1

    async def _give_up(self, work: _Work, ended: GivenUp) -> int:
        row, successor = work.replicas[ended.replica_id], work.replicas.get(ended.successor or "")
        refusal = ended.refusal
        message = refusal.message + (f": {successor.message}" if successor is not None and successor.message else "")
        failure = {"code": refusal.code, "message": message, "hint": refusal.hint}
        if not await store.give_up(work.connection, row, failure):
            raise StalePlanError
        name = work.deployments[row.deployment_id].name
        node = work.node_names.get(row.move_to or "", "")
        await self._record(
            work,
            "replica_move_given_up",
            row.replica_id,
            f"a replica of {name} stays where it is: {message}",
            refusal.code,
            {"node": node},
        )
        return 1

    async def _record(
        self, work: _Work, kind: str, replica_id: str, message: str, reason: str, data: Mapping[str, object]
    ) -> None:
        happening = Happening(
            kind=kind, subject_kind=Subject.REPLICA, subject=replica_id, message=message, reason=reason, data=data
        )
        await self._events.record(work.connection, happening)


def _changed_refusals(picture: Picture, plan: Plan) -> tuple[Refusal, ...]:
    known = {row.deployment_id: row for row in picture.refusals}
    changed = []
    for refusal in plan.refusals:
        before = known.get(refusal.deployment_id)
        nodes = [{"node": one.name, "reason": one.reason} for one in refusal.nodes]
        now = (refusal.code, refusal.message, refusal.hint, nodes)
        if before is None or (before.code, before.message, before.hint, list(before.nodes)) != now:
            changed.append(refusal)
    return tuple(changed)


def _changed_stuck(picture: Picture, plan: Plan) -> list[tuple[Replica, Mapping[str, object]]]:
    now: dict[str, Mapping[str, object]] = {
        one.replica_id: {
            "code": one.refusal.code,
            "message": one.refusal.message,
            "hint": one.refusal.hint,
            "nodes": [{"node": reason.name, "reason": reason.reason} for reason in one.refusal.nodes],
        }
        for one in plan.stuck
    }
    ended = {one.replica_id for one in plan.given_up}
    return [
        (row, now.get(row.replica_id, {}))
        for row in picture.replicas
        if row.desired == Desired.RUN.value and row.replica_id not in ended and row.stuck != now.get(row.replica_id, {})
    ]


def _cured(picture: Picture, plan: Plan) -> tuple[str, ...]:
    refused = {refusal.deployment_id for refusal in plan.refusals}
    return tuple(row.deployment_id for row in picture.refusals if row.deployment_id not in refused)
