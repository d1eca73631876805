"""Deployments: what operators want, checked against the engine's adapter; and the mirror of what nodes report.

Comes in: wishes from the admin API, observations from the reconcile loop. Goes out: rows, events, wake-ups. It places
nothing and starts nothing: the loop does, after the scheduler has planned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from adapters import checking, registry
from adapters.contract import Adapter
from controller.deployments import mirror, store
from controller.deployments.model import (
    Deployment,
    DeploymentChange,
    NewDeployment,
    Replica,
    footprint_json,
)
from controller.exchange import DeployableVersion, Observation, ReplicaReport
from core.errors import Failure
from core.events import Happening, Subject
from core.ids import IdSource
from core.infra import postgres
from core.names import checked_name, did_you_mean
from core.ports import EventLog, Wakeups
from core.states import ReplicaState


class Versions(Protocol):
    """Where model versions come from; the controller's registry implements it."""

    async def deployable(
        self, connection: postgres.Connection, name: str, formats: frozenset[str] | None = None
    ) -> DeployableVersion:
        """Return the newest version of the model `name`; with `formats` the newest of those, if there is one.

        Raises:
            Failure: `registry.model_not_found`, `registry.version_not_found`.
        """

    async def version(self, connection: postgres.Connection, version_id: str) -> DeployableVersion:
        """Return one version by its id.

        Raises:
            Failure: `registry.version_not_found`.
        """


@dataclass(frozen=True, kw_only=True)
class _Spec:
    engine: str
    engine_version: str
    settings: Mapping[str, Any]
    footprint: Mapping[str, Any]


class Deployments:
    """The deployments' one owner; replicas are made by the reconcile loop and mirrored here."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        versions: Versions,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        ids: IdSource,
    ) -> None:
        self._database = database
        self._versions = versions
        self._events = events
        self._wakeups = wakeups
        self._ids = ids

    async def create(self, wish: NewDeployment) -> str:
        """Make a deployment and return its name.

        Raises:
            Failure: `request.invalid_name`, `registry.model_not_found`, `engine.unknown`, `engine.format_unsupported`,
                `engine.setting_invalid`, `engine.setting_reserved`, `deployment.name_taken`, `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            formats = None if wish.engine is None else registry.adapter(wish.engine).formats
            version = await self._versions.deployable(connection, wish.model, formats)
            name = checked_name("deployment", wish.name if wish.name is not None else version.model)
            adapter = chosen_adapter(wish.engine, version.facts.format)
            spec = _spec(adapter, wish.engine_version, version, wish.settings)
            row = {
                "deployment_id": self._ids.fresh("dep"),
                "name": name,
                "version_id": version.version_id,
                "engine": spec.engine,
                "engine_version": spec.engine_version,
                "settings": spec.settings,
                "replicas": wish.replicas,
                "footprint": spec.footprint,
            }
            if not await store.insert(connection, row):
                raise await self._taken(connection, name)
            await self._record(connection, "deployment_created", name, f"deployment {name} was created")
        self._wakeups.wake("deployment_created")
        return name

    async def change(self, name: str, wish: DeploymentChange) -> None:
        """Change a deployment; new settings mean new replicas, another count does not.

        Raises:
            Failure: `deployment.not_found`, `deployment.version_conflict`, `engine.setting_invalid`,
                `engine.setting_reserved`, `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            current = await self._locked(connection, name)
            if wish.if_generation is not None and wish.if_generation != current.generation:
                raise _moved_on(name, current.generation)
            if current.is_deleting:
                raise Failure("deployment.version_conflict", f"deployment {name!r} is being deleted")
            settings, footprint = current.settings, current.footprint
            if wish.settings is not None:
                version = await self._versions.version(connection, current.version_id)
                merged = {**current.settings, **wish.settings}
                given = {key: value for key, value in merged.items() if value is not None}
                spec = _spec(registry.adapter(current.engine), current.engine_version, version, given)
                settings, footprint = spec.settings, spec.footprint
            replicas = current.replicas if wish.replicas is None else wish.replicas
            is_new_spec = settings != current.settings
            if not is_new_spec and replicas == current.replicas:
                return
            is_written = await store.update(
                connection,
                current,
                replicas=replicas,
                settings=settings,
                footprint=footprint,
                is_new_spec=is_new_spec,
            )
            if not is_written:
                raise _moved_on(name, current.generation)
            what = "has new settings" if is_new_spec else f"is scaled from {current.replicas} to {replicas} replicas"
            await self._record(connection, "deployment_changed", name, f"deployment {name} {what}")
        self._wakeups.wake("deployment_changed")

    async def delete(self, name: str) -> None:
        """Begin to delete a deployment: it vanishes when its replicas are gone; again changes nothing.

        Raises:
            Failure: `deployment.not_found`, `storage.unavailable`.
        """
        async with self._database.transaction() as connection:
            current = await self._locked(connection, name)
            if await store.mark_deleting(connection, current.deployment_id):
                message = f"deployment {name} is being deleted"
                await self._record(connection, "deployment_deleting", name, message)
        self._wakeups.wake("deployment_deleting")

    async def deployments(self, connection: postgres.Connection) -> list[Deployment]:
        """Return every deployment, oldest first."""
        return await store.deployments(connection)

    async def deployment(self, connection: postgres.Connection, name: str) -> Deployment:
        """Return one deployment.

        Raises:
            Failure: `deployment.not_found`, with the name that was probably meant.
        """
        found = await store.deployment(connection, name)
        if found is None:
            raise await self._unknown(connection, name)
        return found

    async def absorb(self, connection: postgres.Connection, observation: Observation, *, is_applied: bool) -> int:
        """Let the rows of a node's replicas follow what the node reports; return how many changed."""
        reports = {report.replica_id: report for report in observation.replicas}
        changed = 0
        for row in await store.replicas_of_node(connection, observation.node_id):
            report: ReplicaReport | None = reports.get(row.replica_id)  # type: ignore[call-overload]
            change = mirror.mirrored(row, report, is_applied=is_applied)
            if change is not None:
                await self._write(connection, row, change)
                changed += 1
        return changed

    async def lose(self, connection: postgres.Connection, node_id: str, node_name: str) -> None:
        """Mark every replica of a node that is silent past its lease as lost."""
        for row in await store.replicas_of_node(connection, node_id):
            change = mirror.lost(row, node_name)
            if change is not None:
                await self._write(connection, row, change)

    async def _write(self, connection: postgres.Connection, row: Replica, change: mirror.Change) -> None:
        await store.mirror(connection, row, change)
        if row.state == change.state.value or change.state not in _TOLD:
            return
        happening = Happening(
            kind=f"replica_{change.state.value}",
            subject_kind=Subject.REPLICA,
            subject=row.replica_id,
            reason=change.code,
            message=f"replica {row.replica_id} {_TOLD[change.state]}"
            + (f": {change.message}" if change.message else ""),
            data={"node_id": row.node_id, "incarnation": change.incarnation, "load_s": change.load_s},
        )
        await self._events.record(connection, happening)

    async def _locked(self, connection: postgres.Connection, name: str) -> Deployment:
        found = await store.deployment(connection, name, is_locked=True)
        if found is None:
            raise await self._unknown(connection, name)
        return found

    async def _unknown(self, connection: postgres.Connection, name: str) -> Failure:
        known = [item.name for item in await store.deployments(connection)]
        return Failure(
            "deployment.not_found",
            f"there is no deployment {name!r}.{did_you_mean(name, known)}",
            hint="`slice deployments` shows all",
            param="name",
        )

    async def _taken(self, connection: postgres.Connection, name: str) -> Failure:
        there = await store.deployment(connection, name)
        if there is not None and there.is_deleting:
            message, hint = f"deployment {name!r} is being deleted", "try again when its replicas have stopped"
        else:
            message, hint = f"a deployment named {name!r} exists", "change it, delete it, or choose another name"
        return Failure("deployment.name_taken", message, hint=hint, param="name")

    async def _record(self, connection: postgres.Connection, kind: str, name: str, message: str) -> None:
        happening = Happening(kind=kind, subject_kind=Subject.DEPLOYMENT, subject=name, message=message)
        await self._events.record(connection, happening)


_TOLD: Mapping[ReplicaState, str] = {
    ReplicaState.FETCHING: "waits for its model's files",
    ReplicaState.INSTALLING: "waits for its engine to be installed",
    ReplicaState.STARTING: "is starting",
    ReplicaState.READY: "is ready",
    ReplicaState.UNHEALTHY: "stopped answering its health probe",
    ReplicaState.STOPPED: "has stopped",
    ReplicaState.BACKOFF: "ended by itself and will be started again",
    ReplicaState.CRASH_LOOP: "ended too often",
    ReplicaState.FAILED: "cannot run on its node",
    ReplicaState.LOST: "is lost",
}


def chosen_adapter(engine: str | None, model_format: str) -> Adapter:
    """Return the adapter named `engine`, or the first that eats `model_format`.

    An adapter that also serves without any file is for drills: it is the choice for the empty format only.

    Raises:
        Failure: `engine.unknown`, `engine.format_unsupported`.
    """
    if engine is not None:
        adapter = registry.adapter(engine)
        if model_format not in adapter.formats:
            raise _unsupported(f"engine {engine} does not serve", model_format)
        return adapter
    fitting = [
        adapter
        for adapter in registry.adapters()
        if model_format in adapter.formats and (model_format == "" or "" not in adapter.formats)
    ]
    if not fitting:
        raise _unsupported("no engine serves", model_format)
    return fitting[0]


def _unsupported(who: str, model_format: str) -> Failure:
    what = f"the format {model_format!r}" if model_format else "a model without a file"
    known = ", ".join(f"{adapter.name} ({', '.join(sorted(adapter.formats))})" for adapter in registry.adapters())
    hint = (
        f"engines and what they serve: {known}; `slice pull NAME --source SOURCE --engine ENGINE` brings what one eats"
    )
    return Failure("engine.format_unsupported", f"{who} {what}", hint=hint, param="engine")


def _spec(adapter: Adapter, engine_version: str | None, version: DeployableVersion, given: Mapping[str, Any]) -> _Spec:
    settings = checking.checked_settings(adapter, given, version.facts)
    return _Spec(
        engine=adapter.name,
        engine_version=engine_version or adapter.default_version,
        settings=settings,
        footprint=footprint_json(adapter.footprint(version.facts, settings)),
    )


def _moved_on(name: str, generation: int) -> Failure:
    return Failure(
        "deployment.version_conflict",
        f"deployment {name!r} was changed by somebody else: it is at generation {generation}",
        hint="look at it again, then repeat the change",
        param="if_generation",
    )
