"""Deployments: what operators want, checked against the engine's adapter; and the mirror of what nodes report.

Comes in: wishes from the admin API, observations from the reconcile loop. Goes out: rows, events, wake-ups. It places
nothing and starts nothing: the loop does, after the scheduler has planned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapters import registry
from adapters.contract import Adapter, Runtime
from controller.deployments import adopted, mirror, runtime, store
from controller.deployments.choosing import (
    Spec,
    checked_capabilities,
    checked_engine_version,
    checked_spec,
    chosen_adapter,
    given_settings,
)
from controller.deployments.model import Deployment, DeploymentChange, NewDeployment, Replica
from controller.deployments.ports import EngineVersions, Installations, SecretHolder, TemplateCheck, Versions
from controller.exchange import DeployableVersion, Observation, ReplicaReport
from controller.versioned import check_version
from core.errors import Failure
from core.events import Happening, Subject
from core.ids import IdSource
from core.infra import postgres
from core.names import checked_name, did_you_mean, version_text
from core.ports import EventLog, Wakeups
from core.states import ReplicaState


class Deployments:
    """The deployments' one owner; replicas are made by the reconcile loop and mirrored here."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        versions: Versions,
        secrets: SecretHolder,
        installations: Installations,
        engine_versions: EngineVersions,
        templates: TemplateCheck,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        ids: IdSource,
    ) -> None:
        self._database = database
        self._versions = versions
        self._secrets = secrets
        self._installations = installations
        self._engine_versions = engine_versions
        self._templates = templates
        self._events = events
        self._wakeups = wakeups
        self._ids = ids

    async def create(self, wish: NewDeployment, *, connection: postgres.Connection | None = None) -> str:
        """Make a deployment and return its name.

        Raises:
            Failure: `request.invalid_name`, `request.invalid_field`, `registry.model_not_found`,
                `registry.version_not_found`, `engine.unknown`, `engine.version_unknown`, `engine.format_unsupported`,
                `engine.capability_missing`, `engine.below_floor`, `engine.setting_invalid`,
                `engine.setting_reserved`, `engine.runtime_unsupported`, `container.image_not_pinned`,
                `secret.not_found`, `secret.unreadable`, `deployment.name_taken`, `storage.unavailable`.
        """
        requires = checked_capabilities(wish.requires)
        formats = registry.adapter(wish.engine).formats if wish.engine is not None else None
        async with self._database.work(connection) as work:
            if formats == frozenset({""}) and "@" not in wish.model:  # its model lies elsewhere: nothing can be pulled
                await self._versions.ensure_remote(work, wish.model)
            version = await self._versions.deployable(work, wish.model, formats)
            name = checked_name("deployment", wish.name if wish.name is not None else version.model)
            adapter = chosen_adapter(wish.engine, version.facts, requires=requires, settings=wish.settings)
            engine_version = await self._engine_version(work, adapter, wish.engine_version)
            place = adopted.placement(version)
            if version.is_adopted:
                adopted.check_wish(place, wish)
            settings = {**wish.settings, **place.settings}
            chosen = place.runtime if version.is_adopted else runtime.chosen_runtime(adapter, wish)
            spec = checked_spec(
                adapter, engine_version, version.facts, settings=settings, requires=requires, runtime=chosen
            )
            if wish.secret_name:
                await self._secrets.hold(work, wish.secret_name)
            row = {
                "deployment_id": self._ids.fresh("dep"),
                "name": name,
                "version_id": version.version_id,
                "engine": spec.engine,
                "engine_version": spec.engine_version,
                "settings": spec.settings,
                "replicas": wish.replicas,
                "footprint": spec.footprint,
                "requires": spec.requires,
                "is_enabled": wish.is_enabled,
                "disabled_answer": wish.disabled_answer,
                "runtime": chosen.value,
                "image": wish.image,
                "node_name": place.node_name or (wish.node_name and checked_name("node", wish.node_name)),
                "secret_name": wish.secret_name,
            }
            if not await store.insert(work, row):
                raise await self._taken(work, name)
            await self._record(work, "deployment_created", name, f"deployment {name} was created")
        self._wakeups.wake("deployment_created")
        return name

    async def _engine_version(self, connection: postgres.Connection, adapter: Adapter, asked: str | None) -> str:
        if asked is not None:
            checked_engine_version(adapter, asked, self._installations.installed_versions(adapter.name))
        return await self._engine_versions.chosen(connection, adapter, asked)

    async def copy(
        self,
        name: str,
        to: str,
        *,
        settings: Mapping[str, Any],
        replicas: int | None = None,
        expected: int | None = None,
    ) -> str:
        """Make a deployment `to` like `name`, but for `settings` and, when given, `replicas`; it begins enabled.

        Raises:
            Failure: `request.invalid_name`, `request.version_conflict`, `deployment.not_found`,
                `deployment.name_taken`, `engine.setting_invalid`, `engine.setting_reserved`,
                `engine.capability_missing`, `storage.unavailable`.
        """
        checked_name("deployment", to)
        async with self._database.transaction() as connection:
            source = await self._locked(connection, name)
            check_version("deployment", name, source.generation, expected)
            version = await self._versions.version(connection, source.version_id)
            spec = _merged(source, DeploymentChange(settings=settings), version, version, source.engine_version)
            row = {
                "source_id": source.deployment_id,
                "deployment_id": self._ids.fresh("dep"),
                "name": to,
                "settings": spec.settings,
                "footprint": spec.footprint,
                "replicas": source.replicas if replicas is None else replicas,
            }
            if not await store.insert_copy(connection, row):
                raise await self._taken(connection, to)
            await self._record(connection, "deployment_created", to, f"deployment {to} was copied from {name}")
        self._wakeups.wake("deployment_created")
        return to

    async def change(self, name: str, wish: DeploymentChange, *, connection: postgres.Connection | None = None) -> None:
        """Change a deployment: another version, engine version or setting means new replicas, all else does not.

        Raises:
            Failure: `deployment.not_found`, `deployment.version_conflict`, `request.version_conflict`,
                `request.invalid_field`, `registry.version_not_found`, `registry.template_changed`,
                `engine.version_unknown`, `engine.format_unsupported`, `engine.capability_missing`,
                `engine.setting_invalid`, `engine.setting_reserved`, `storage.unavailable`.
        """
        async with self._database.work(connection) as work:
            current = await self._locked(work, name)
            if wish.if_generation is not None and wish.if_generation != current.generation:
                raise _moved_on(name, current.generation)
            check_version("deployment", name, current.generation, wish.resource_version)
            if current.is_deleting:
                raise Failure("deployment.version_conflict", f"deployment {name!r} is being deleted")
            row = await self._changed(work, current, wish)
            approved = await self._approved(work, current, row, wish)
            what = _told_change(current, row)
            if not what:
                return
            is_new_spec = any(row[field] != getattr(current, field) for field in _SPEC_FIELDS)
            if not await store.update(work, current, row, is_new_spec=is_new_spec):
                raise _moved_on(name, current.generation)
            more = {"approved_template": approved} if approved else {}
            await self._record(work, "deployment_changed", name, f"deployment {name} {what}", **more)
        self._wakeups.wake("deployment_changed")

    async def _approved(
        self, connection: postgres.Connection, current: Deployment, row: Mapping[str, Any], wish: DeploymentChange
    ) -> str:
        """Return the digest of a chat template that this change newly approves, "" where none had to be."""
        if wish.version is None:
            if wish.approve_template is not None:
                raise Failure(
                    "request.invalid_field",
                    "a chat template is approved for another version, and none is named",
                    hint="name the version too, or leave approve_template out",
                    param="approve_template",
                )
            return ""
        if row["version_id"] == current.version_id:
            return ""
        command = f"slice update {current.name} --version v{wish.version}"
        return await self._templates.checked(
            connection, current.version_id, row["version_id"], approve=wish.approve_template, command=command
        )

    async def _changed(
        self, connection: postgres.Connection, current: Deployment, wish: DeploymentChange
    ) -> Mapping[str, Any]:
        """Return the row as `wish` wants it."""
        row = {
            "version_id": current.version_id,
            "engine_version": current.engine_version,
            "settings": current.settings,
            "footprint": current.footprint,
            "requires": list(current.requires),
            "replicas": current.replicas if wish.replicas is None else wish.replicas,
            "is_enabled": current.is_enabled if wish.is_enabled is None else wish.is_enabled,
            "disabled_answer": wish.disabled_answer or current.disabled_answer,
            "node_name": current.node_name,
        }
        if (wish.settings, wish.version, wish.engine_version, wish.requires) == (None, None, None, None):
            return row
        before = await self._versions.version(connection, current.version_id)
        after = before
        place = adopted.Placement(node_name=current.node_name)
        if wish.version is not None:
            after = await self._versions.deployable(connection, version_text(current.model, wish.version))
            place = adopted.placement_after(current, before, after)
        engine_version = current.engine_version
        if wish.engine_version is not None:
            adapter = registry.adapter(current.engine)
            engine_version = await self._engine_version(connection, adapter, wish.engine_version)
        settings = {**(wish.settings or {}), **place.settings}
        spec = _merged(current, replace(wish, settings=settings), before, after, engine_version)
        return {
            **row,
            "version_id": after.version_id,
            "engine_version": spec.engine_version,
            "settings": spec.settings,
            "footprint": spec.footprint,
            "requires": list(spec.requires),
            "node_name": place.node_name,
        }

    async def run_engine_version(
        self,
        connection: postgres.Connection,
        engine: str,
        version: str,
        *,
        instead_of: frozenset[str],
        names: Sequence[str] | None,
    ) -> tuple[str, ...]:
        """Let deployments of `engine` run `version`: those called `names`, or all that run one of `instead_of`.

        Returns the names of those that ran another one; each gets new replicas, as after a change of settings.

        Raises:
            Failure: `deployment.not_found`, `request.invalid_field` for one of another engine.
        """
        for name in names or ():
            current = await self._locked(connection, name)
            if current.engine != engine:
                raise Failure("request.invalid_field", f"deployment {name!r} runs {current.engine}, not {engine}")
        moved = await store.run_engine_version(connection, engine, version, instead_of=instead_of, names=names)
        for name in moved:
            await self._record(connection, "deployment_changed", name, f"deployment {name} runs {engine} {version}")
        return moved

    async def delete(
        self, name: str, *, expected: int | None = None, connection: postgres.Connection | None = None
    ) -> None:
        """Begin to delete a deployment: it vanishes when its replicas are gone; again changes nothing.

        Raises:
            Failure: `deployment.not_found`, `request.version_conflict`, `storage.unavailable`.
        """
        async with self._database.work(connection) as work:
            current = await self._locked(work, name)
            check_version("deployment", name, current.generation, expected)
            if await store.mark_deleting(work, current.deployment_id):
                message = f"deployment {name} is being deleted"
                await self._record(work, "deployment_deleting", name, message)
        self._wakeups.wake("deployment_deleting")

    async def undeploy(self, connection: postgres.Connection, name: str) -> None:
        """Begin to delete a deployment in the transaction of `connection`, for a model that is deleted by force."""
        await self.delete(name, connection=connection)

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

    async def _record(
        self, connection: postgres.Connection, kind: str, name: str, message: str, **data: object
    ) -> None:
        happening = Happening(kind=kind, subject_kind=Subject.DEPLOYMENT, subject=name, message=message, data=data)
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


_SPEC_FIELDS = ("version_id", "engine_version", "settings")
"""What a replica is started with: when one of these changes, replicas are replaced."""


def _merged(
    current: Deployment,
    wish: DeploymentChange,
    before: DeployableVersion,
    after: DeployableVersion,
    engine_version: str,
) -> Spec:
    """Return the spec of `current` with `wish` on top; what was left at its default follows the model's new limits."""
    adapter = registry.adapter(current.engine)
    merged = {**given_settings(adapter, current.settings, before.facts), **(wish.settings or {})}
    return checked_spec(
        adapter,
        engine_version,
        after.facts,
        settings={key: value for key, value in merged.items() if value is not None},
        requires=checked_capabilities(current.requires if wish.requires is None else wish.requires),
        runtime=Runtime(current.runtime),
    )


def _told_change(current: Deployment, row: Mapping[str, Any]) -> str:
    """Return what changes, for the event; empty when nothing does."""
    words = (
        ("version_id", "goes to another version of its model"),
        ("engine_version", f"goes to {current.engine} {row['engine_version']}"),
        ("settings", "has new settings"),
        ("requires", "has new requirements"),
        ("replicas", f"is scaled from {current.replicas} to {row['replicas']} replicas"),
        ("is_enabled", "is enabled" if row["is_enabled"] else f"is disabled and answers {row['disabled_answer']}"),
        ("disabled_answer", f"answers {row['disabled_answer']} while it is disabled"),
    )
    return ", ".join(text for field, text in words if row[field] != getattr(current, field))


def _moved_on(name: str, generation: int) -> Failure:
    return Failure(
        "deployment.version_conflict",
        f"deployment {name!r} was changed by somebody else: it is at generation {generation}",
        hint="look at it again, then repeat the change",
        param="if_generation",
    )
