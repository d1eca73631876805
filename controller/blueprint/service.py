"""Exports a cluster as a blueprint, and makes a cluster what a blueprint says.

Comes in: text from the admin API. Goes out: text, or the changes that were made. All that can be done at once is done
in one transaction through the services that own the things, so a bad file changes nothing; a rehearsal does the same
and rolls back. What needs a pull waits for it: the same file applied again goes on from there.
"""

import asyncio
import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from adapters import checking
from adapters import facts as model_facts
from adapters import registry as engines
from adapters.contract import ModelFacts
from controller.blueprint import reading, writing
from controller.blueprint.changes import Numbers, changes
from controller.blueprint.model import Action, Alias, Blueprint, Change, Deployment, Kind, Version, Way
from controller.deployments.choosing import checked_capabilities, given_settings
from controller.deployments.model import DeploymentChange, NewDeployment
from controller.deployments.service import Deployments
from controller.registry.aliases import Aliases
from controller.registry.catalog import builtin_entry
from controller.registry.model import CatalogueOfModels, Pull
from controller.registry.model import Version as VersionRow
from controller.registry.pulls import Pulls
from controller.registry.service import Registry, newest
from controller.registry.stages import Stages
from core.errors import Failure
from core.infra import postgres
from core.names import version_text
from core.ports import Wakeups
from core.sources import parse_source
from core.states import Stage, stage_path

_ROUNDS = 5
"""Each round makes all that can be made; what it makes possible is made in the next. Two are enough today."""
_FIXED = frozenset({"model", "engine", "runtime", "image", "node", "secret"})
"""Fields in which a deployment that exists cannot be changed."""
_REASON = "applied from a file"
_IN_PARTS = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z", re.IGNORECASE)


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

    def facts_of(self, model: str, number: int) -> ModelFacts | None:
        """Return the facts of one version by the cluster's number."""
        found = (version for version in self._versions(model) if version.number == number)
        return self._facts(next(found, None))

    def facts_with(self, digest: str) -> ModelFacts | None:
        """Return the facts of a content, of whatever model."""
        return self._facts(next((version for version in self.every.versions if version.digest == digest), None))

    def newest_facts(self, model: str, formats: frozenset[str]) -> ModelFacts | None:
        """Return the facts of the version that a new deployment gets which names none."""
        try:
            return self._facts(newest(model, self._versions(model), formats))
        except Failure:  # there is none yet, or none that is not retired
            return None

    def _versions(self, model: str) -> list[VersionRow]:
        ids = {row.name: row.model_id for row in self.every.models}
        found = [version for version in self.every.versions if version.model_id == ids.get(model)]
        return sorted(found, key=lambda version: version.number)

    def _facts(self, version: VersionRow | None) -> ModelFacts | None:
        return None if version is None else self.facts[version.version_id]


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
                approve = change.wanted.approve_template or None
                await self._aliases.put(change.name, target, approve_template=approve, connection=connection)
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
            entry = builtin_entry(wanted.source)
            if entry is None:
                raise Failure("source.not_found", f"this release has no {wanted.source!r}", hint="`slice catalog`")
            await self._registry.check_free(connection, change.model)
            await self._registry.register_builtin(connection, dataclasses.replace(entry, name=change.model))
        elif wanted.stage is not None:
            model = await self._registry.named(connection, change.model)
            row = await self._registry.numbered(connection, model, wanted.number)
            for stage in stage_path(Stage(row.stage), wanted.stage):
                await self._stages.move(
                    change.model,
                    wanted.number,
                    stage,
                    reason=_REASON,
                    approve_template=(wanted.approve_template or None) if stage is Stage.PRODUCTION else None,
                    connection=connection,
                )

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
                approve_template=(wanted.approve_template or None) if "version" in fields else None,
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
    """Return the source to pull a version from; one that names a file without its digest gets the version's.

    Of a GGUF file in parts, of a repository or of a tag the version's digest may be that of the manifest of many files,
    which no file has.
    """
    kind, _, digest = version.digest.partition(":")
    if kind != "sha256" or "#" in version.source:
        return version.source
    path = parse_source(version.source).path
    is_one_file = path.lower().endswith(".gguf") and not _IN_PARTS.search(path)
    return f"{version.source}#file={digest}" if is_one_file else version.source


def _normal(wanted: Blueprint, there: _Cluster) -> Blueprint:
    """Return `wanted` with its settings checked, and without those that are the defaults anyway."""
    if wanted.deployments is None:
        return wanted
    known = {one.name: one for one in there.blueprint.deployments or ()}
    numbers = Numbers(wanted, there.blueprint)
    return dataclasses.replace(
        wanted, deployments=tuple(_checked(one, known.get(one.name), there, numbers) for one in wanted.deployments)
    )


def _checked(wanted: Deployment, there: Deployment | None, cluster: _Cluster, numbers: Numbers) -> Deployment:
    engine = wanted.engine or (there.engine if there else None)
    number, is_here = numbers.of(wanted.model, wanted.number, wanted.line)
    try:
        checked_capabilities(wanted.requires)
        if engine is None:
            return wanted
        adapter = engines.adapter(engine)
        if number is None and there is not None and there.number is not None:
            facts = cluster.facts_of(wanted.model, there.number)
        elif number is None:
            facts = cluster.newest_facts(wanted.model, adapter.formats)
        elif is_here:
            facts = cluster.facts_of(wanted.model, number)
        else:
            meant = numbers.listed(wanted.model, number)
            facts = cluster.facts_with(meant.digest) if meant is not None else None
        whole = checking.checked_settings(adapter, wanted.settings, facts)
    except Failure as failure:
        named = Failure(
            failure.code, f"deployment {wanted.name}: {failure.message}", hint=failure.hint, param=failure.param
        )
        raise reading.at_line(named, wanted.line) from failure
    if facts is None:  # defaults follow the model: which of these are, nobody knows before it is here
        return wanted
    return dataclasses.replace(wanted, settings=given_settings(adapter, whole, facts))
