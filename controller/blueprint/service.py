"""Exports a cluster as a blueprint, and makes a cluster what a blueprint says.

Comes in: text from the admin API. Goes out: text, or the changes that were made. All that can be done at once is done
in one transaction through the services that own the things, so a bad file changes nothing; a rehearsal does the same
and rolls back. What needs a pull waits for it: the same file applied again goes on from there.
"""

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from adapters import checking
from adapters import facts as model_facts
from adapters import registry as engines
from adapters.contract import ModelFacts
from controller.blueprint import reading, writing
from controller.blueprint.changes import changes
from controller.blueprint.model import Action, Alias, Blueprint, Change, Deployment, Kind, Version, Way
from controller.deployments.choosing import checked_capabilities, given_settings
from controller.deployments.model import DeploymentChange, NewDeployment
from controller.deployments.service import Deployments
from controller.registry.aliases import Aliases
from controller.registry.catalog import CATALOG, remote_entry
from controller.registry.model import CatalogueOfModels, Pull
from controller.registry.pulls import Pulls
from controller.registry.service import Registry
from controller.registry.stages import Stages
from core.errors import Failure
from core.infra import postgres
from core.names import version_text
from core.ports import Wakeups
from core.states import Stage, stage_path

_ROUNDS = 5
"""Each round makes all that can be made; what it makes possible is made in the next. Two are enough today."""
_FIXED = frozenset({"model", "engine", "runtime", "image", "node", "secret"})
"""Fields in which a deployment that exists cannot be changed."""
_REASON = "applied from a file"


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What was changed (or would be), what waits for a pull, and the pulls."""

    done: tuple[Change, ...]
    waiting: tuple[Change, ...]
    pulls: tuple[Pull, ...]


@dataclass(frozen=True, kw_only=True)
class _Cluster:
    """The cluster as one transaction sees it."""

    every: CatalogueOfModels
    blueprint: Blueprint
    facts: dict[str, ModelFacts]

    def facts_of(self, model: str, number: int | None) -> ModelFacts | None:
        """Return the facts of one version by the cluster's number."""
        ids = {row.name: row.model_id for row in self.every.models}
        for version in self.every.versions:
            if version.model_id == ids.get(model) and version.number == number:
                return self.facts[version.version_id]
        return None


class Blueprints:
    """Reads and writes whole clusters; it owns nothing and asks the owners."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        registry: Registry,
        stages: Stages,
        aliases: Aliases,
        pulls: Pulls,
        deployments: Deployments,
        wakeups: Wakeups,
    ) -> None:
        self._database = database
        self._registry = registry
        self._stages = stages
        self._aliases = aliases
        self._pulls = pulls
        self._deployments = deployments
        self._wakeups = wakeups

    async def exported(self) -> str:
        """Return the text of a file that makes another cluster like this one.

        Raises:
            Failure: `storage.unavailable`.
        """
        async with self._database.snapshot() as connection:
            return writing.text((await self._read(connection)).blueprint)

    async def apply(self, text: str, *, prune: bool = False, is_rehearsal: bool = False) -> Applied:
        """Make the cluster what `text` says, as far as it goes without a pull, and begin the pulls that are missing.

        The pulls are begun in the same transaction: one that is refused leaves nothing behind.

        Raises:
            Failure: whatever is wrong with the file or with one of its things, with its line; then nothing was changed.
        """
        wanted = await asyncio.to_thread(reading.blueprint, text)
        applied = await postgres.repeated(lambda: self._applied(wanted, prune=prune, is_rehearsal=is_rehearsal))
        if not is_rehearsal:
            self._wakeups.wake("applied")  # what was woken for before the commit saw nothing of it
        return applied

    async def _applied(self, wanted: Blueprint, *, prune: bool, is_rehearsal: bool) -> Applied:
        done: list[Change] = []
        waiting: tuple[Change, ...] = ()
        async with self._database.transaction() as connection, connection.transaction() as inner:
            for _ in range(_ROUNDS):
                there = await self._read(connection)
                plan = changes(_normal(wanted, there), there.blueprint, prune=prune)
                waiting = tuple(change for change in plan if change.is_waiting)
                now = [change for change in plan if not change.is_waiting]
                for change in now:
                    await self._make(connection, change, there)
                done += now
                if not now:
                    break
            pulls = await self._begun(connection, waiting)
            if is_rehearsal:
                raise psycopg.Rollback(inner)
        return Applied(done=tuple(done), waiting=waiting, pulls=() if is_rehearsal else pulls)

    async def _read(self, connection: postgres.Connection) -> _Cluster:
        every = await self._registry.everything(connection)
        facts = {row.version_id: model_facts.facts_from_json(json.dumps(row.facts)) for row in every.versions}
        rows = await self._deployments.deployments(connection)
        return _Cluster(every=every, blueprint=writing.current(every, rows, facts), facts=facts)

    async def _begun(self, connection: postgres.Connection, waiting: tuple[Change, ...]) -> tuple[Pull, ...]:
        """Begin to pull the first missing version of each model: numbers are given in the order of arrival."""
        pulls: dict[str, Pull] = {}
        for change in waiting:
            if isinstance(change.wanted, Version) and change.model not in pulls:
                with _told(change):
                    source = pinned(change.wanted)
                    pulls[change.model] = await self._pulls.begin(change.model, source, connection=connection)
        return tuple(pulls.values())

    async def _make(self, connection: postgres.Connection, change: Change, there: _Cluster) -> None:
        with _told(change):
            if change.action is Action.DELETE:
                await self._delete(connection, change)
            elif isinstance(change.wanted, Version):
                await self._version(connection, change, change.wanted, there)
            elif isinstance(change.wanted, Alias):
                target = version_text(change.wanted.model, change.wanted.number)
                await self._aliases.put(change.name, target, connection=connection)
            elif isinstance(change.wanted, Deployment):
                await self._deployment(connection, change, change.wanted)

    async def _delete(self, connection: postgres.Connection, change: Change) -> None:
        if change.kind is Kind.ALIAS:
            await self._aliases.delete(change.name, connection=connection)
        elif change.kind is Kind.DEPLOYMENT:
            await self._deployments.delete(change.name, connection=connection)
        else:
            await self._registry.delete(change.model, change.number, undeploy=None, connection=connection)

    async def _version(self, connection: postgres.Connection, change: Change, wanted: Version, there: _Cluster) -> None:
        if change.way is Way.COPY:
            source = next(row for row in there.every.versions if row.digest == wanted.digest)
            await self._registry.register_again(connection, change.model, source)
        elif change.way is Way.BUILTIN:
            entries = (*CATALOG.values(), remote_entry(change.model))
            entry = next((one for one in entries if one.source == wanted.source), None)
            if entry is None:
                raise Failure("source.not_found", f"this release has no {wanted.source!r}", hint="`slice catalog`")
            await self._registry.check_free(connection, change.model)
            await self._registry.register_builtin(connection, dataclasses.replace(entry, name=change.model))
        elif wanted.stage is not None:
            model = await self._registry.named(connection, change.model)
            row = await self._registry.numbered(connection, model, wanted.number)
            for stage in stage_path(Stage(row.stage), wanted.stage):
                await self._stages.move(change.model, wanted.number, stage, reason=_REASON, connection=connection)

    async def _deployment(self, connection: postgres.Connection, change: Change, wanted: Deployment) -> None:
        if change.action is Action.CREATE:
            await self._deployments.create(
                NewDeployment(
                    name=wanted.name,
                    model=version_text(wanted.model, wanted.number),
                    engine=wanted.engine,
                    engine_version=wanted.engine_version,
                    replicas=wanted.replicas,
                    settings=wanted.settings,
                    requires=wanted.requires,
                    is_enabled=wanted.is_enabled,
                    disabled_answer=wanted.disabled_answer,
                    runtime=wanted.runtime,
                    image=wanted.image or "",
                    node_name=wanted.node or "",
                    secret_name=wanted.secret or "",
                ),
                connection=connection,
            )
            return
        fields = {field.name: field.after for field in change.fields}
        fixed = sorted(_FIXED & fields.keys())
        if fixed:
            raise Failure(
                "deployment.name_taken",
                f"it is there with another {' and '.join(fixed)}, which cannot be changed",
                hint="delete it first, or give the new one another name",
            )
        settings = {name.partition(".")[2]: after for name, after in fields.items() if name.startswith("settings.")}
        await self._deployments.change(
            wanted.name,
            DeploymentChange(
                replicas=fields.get("replicas"),
                settings=settings or None,
                version=fields.get("version"),
                engine_version=fields.get("engine_version"),
                requires=fields.get("requires"),
                is_enabled=fields.get("is_enabled"),
                disabled_answer=fields.get("disabled_answer"),
            ),
            connection=connection,
        )


@contextmanager
def _told(change: Change) -> Iterator[None]:
    """Let a failure of the block say which change of the file it is about."""
    try:
        yield
    except Failure as failure:
        where = f"line {change.line}, " if change.line else ""
        message = f"{where}{change.kind} {change.name}: {failure.message}"
        raise Failure(failure.code, message, hint=failure.hint, param=failure.param) from failure


def pinned(version: Version) -> str:
    """Return the source to pull a version from; one that names a file without its digest gets the version's."""
    kind, _, digest = version.digest.partition(":")
    if kind != "sha256" or "#" in version.source or not version.source.lower().endswith(".gguf"):
        return version.source
    return f"{version.source}#file={digest}"


def _normal(wanted: Blueprint, there: _Cluster) -> Blueprint:
    """Return `wanted` with its settings checked, and without those that are the defaults anyway."""
    if wanted.deployments is None:
        return wanted
    known = {one.name: one for one in there.blueprint.deployments or ()}
    return dataclasses.replace(
        wanted, deployments=tuple(_checked(one, known.get(one.name), there) for one in wanted.deployments)
    )


def _checked(wanted: Deployment, there: Deployment | None, cluster: _Cluster) -> Deployment:
    engine = wanted.engine or (there.engine if there else None)
    try:
        checked_capabilities(wanted.requires)
        if engine is None:
            return wanted
        adapter = engines.adapter(engine)
        number = wanted.number if wanted.number is not None else there.number if there else None
        facts = cluster.facts_of(wanted.model, number)
        whole = checking.checked_settings(adapter, wanted.settings, facts)
    except Failure as failure:
        named = Failure(
            failure.code, f"deployment {wanted.name}: {failure.message}", hint=failure.hint, param=failure.param
        )
        raise reading.at_line(named, wanted.line) from failure
    return dataclasses.replace(wanted, settings=given_settings(adapter, whole, facts))
