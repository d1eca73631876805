"""The registry: models, their versions, and what a deployment needs of them.

Comes in: names from the admin API. Goes out: rows, `DeployableVersion`, events. Pulls are next door in `pulls.py`,
aliases in `aliases.py`, stages in `stages.py`. A version is immutable but for its stage, and is never deleted under a
deployment.
"""

import json
from collections.abc import Awaitable, Callable, Sequence

from adapters import facts as model_facts
from controller.exchange import DeployableVersion, VersionFile
from controller.registry import adopted_store, alias_store, file_store, places, store
from controller.registry.catalog import CATALOG, CatalogEntry, remote_entry
from controller.registry.model import CatalogueOfModels, Model, NewVersion, Template, Use, Version
from controller.versioned import check_version
from core.errors import Failure
from core.events import Happening, Subject
from core.ids import IdSource, ModelName, Sha256, VersionId
from core.infra import postgres
from core.names import checked_name, did_you_mean, split_version, version_text
from core.ports import EventLog, Wakeups
from core.states import Stage

Undeploy = Callable[[postgres.Connection, str], Awaitable[None]]
"""Begins to delete the deployment of that name, in the transaction of that connection."""


class Registry:
    """Models and versions; writes through `postgres`, tells the reconcile loop through `wakeups`."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        ids: IdSource,
    ) -> None:
        self._database = database
        self._events = events
        self._wakeups = wakeups
        self._ids = ids

    async def everything(self, connection: postgres.Connection) -> CatalogueOfModels:
        """Return all models with versions, files, places and aliases, as `connection` sees them."""
        return CatalogueOfModels(
            models=tuple(await store.models(connection)),
            versions=tuple(one for one in await store.versions(connection) if not one.is_deleting),
            files=tuple(await store.files(connection)),
            places=tuple(await store.places(connection)),
            aliases=tuple(await alias_store.aliases(connection)),
            holders=tuple(await adopted_store.holders(connection)),
        )

    async def model_in(self, connection: postgres.Connection, name: str) -> Model:
        """Return the model `name`, or the one that the alias `name` stands for.

        Raises:
            Failure: `registry.model_not_found`, with the name that was probably meant.
        """
        return (await self._meant(connection, name))[0]

    async def named(self, connection: postgres.Connection, name: str) -> Model:
        """Return the model `name`; an alias is none.

        With `formats` it is the newest of those formats, if there is one.

        Raises:
            Failure: `registry.model_not_found`, with the name that was probably meant.
        """
        found = await store.model(connection, name)
        if found is None or found.is_deleting:
            raise await self.unknown(connection, name)
        return found

    async def locked(self, connection: postgres.Connection, name: str, expected: int | None = None) -> Model:
        """Return the model `name` as it stands, held until the transaction ends.

        Raises:
            Failure: `registry.model_not_found`, or `request.version_conflict` when it is not at version `expected`.
        """
        await store.lock_model(connection, name)
        model = await self.named(connection, name)
        check_version("model", name, model.resource_version, expected)
        return model

    async def numbered(self, connection: postgres.Connection, model: Model, number: int) -> Version:
        """Return version `number` of `model`.

        Raises:
            Failure: `registry.version_not_found`, with those that exist.
        """
        versions = await store.versions_of(connection, model.model_id)
        found = next((version for version in versions if version.number == number), None)
        if found is None:
            there = ", ".join(f"v{version.number}" for version in versions)
            raise Failure(
                "registry.version_not_found",
                f"model {model.name!r} has no version {number}",
                hint=f"it has {there}" if there else f"it has none; `slice pull {model.name}` brings one",
                param="model",
            )
        return found

    async def deployable(
        self, connection: postgres.Connection, name: str, formats: frozenset[str] | None = None
    ) -> DeployableVersion:
        """Return the version that `name` means: `m@v2`, or of `m` the newest that is not retired.

        With `formats` the newest of those formats, if there is one. A model of the catalogue that needs no file is
        registered here.

        Raises:
            Failure: `request.invalid_name`, `registry.model_not_found`, `registry.version_not_found`.
        """
        name, number = split_version(name)
        entry = CATALOG.get(name)
        if entry is not None and entry.is_builtin:
            await self.register_builtin(connection, entry)
        model, pinned = await self._meant(connection, name)
        if number is None:
            number = pinned
        if number is not None:
            version = await self.numbered(connection, model, number)
        else:
            version = newest(model.name, await store.versions_of(connection, model.model_id), formats)
        return await self._deployable(connection, model, version)

    async def _meant(self, connection: postgres.Connection, name: str) -> tuple[Model, int | None]:
        found, number = await store.model(connection, name), None
        if found is None:
            for alias in await alias_store.aliases(connection):
                if alias.name == name:
                    found, number = await store.model(connection, alias.model), alias.version
        if found is None or found.is_deleting:
            raise await self.unknown(connection, name)
        return found, number

    async def version(self, connection: postgres.Connection, version_id: str) -> DeployableVersion:
        """Return one version by its id.

        Raises:
            Failure: `registry.version_not_found`.
        """
        for version in await store.versions(connection):
            if version.version_id == version_id:
                model = await store.model_by_id(connection, version.model_id)
                assert model is not None, "a version has a model"
                return await self._deployable(connection, model, version)
        raise Failure("registry.version_not_found", f"there is no version {version_id!r}")

    async def _deployable(self, connection: postgres.Connection, model: Model, version: Version) -> DeployableVersion:
        files = await store.files_of(connection, version.version_id)
        return DeployableVersion(
            version_id=VersionId(version.version_id),
            model=ModelName(model.name),
            number=version.number,
            facts=model_facts.facts_from_json(json.dumps(version.facts)),
            file_digests=tuple(Sha256(file.sha256) for file in files),
            is_adopted=places.is_adopted(version),
            adopted=await places.place_of(connection, version) if places.is_adopted(version) else None,
        )

    async def register_builtin(self, connection: postgres.Connection, entry: CatalogEntry) -> None:
        """Register a model of the catalogue that has no file, unless it is there."""
        new = NewVersion(
            digest=entry.source,
            source=entry.source,
            files=(),
            format="",
            size_bytes=0,
            facts={"format": "", "size_bytes": 0},
        )
        await self.register(connection, entry.name, new)

    async def ensure_remote(self, connection: postgres.Connection, name: str) -> None:
        """Register `name` as a model that lies elsewhere, unless there is a model or an alias of that name.

        Raises:
            Failure: `request.invalid_name`; `registry.name_taken` while a model of that name is being deleted.
        """
        checked_name("model", name)
        found = await store.model(connection, name)
        is_alias = any(alias.name == name for alias in await alias_store.aliases(connection))
        if (found is None and not is_alias) or (found is not None and found.is_deleting):
            await self.register_builtin(connection, remote_entry(name))

    async def register(self, connection: postgres.Connection, name: str, new: NewVersion) -> bool:
        """Make `new` the next version of the model `name`, in the transaction of `connection`.

        Returns False when this content is a version of it already.

        Raises:
            Failure: `registry.name_taken` while a model of that name is being deleted, or when its versions lie in an
                adopted engine and `new` has files of ours.
        """
        await store.ensure_model(connection, self._ids.fresh("mod"), name)
        model = await store.model(connection, name)
        assert model is not None, "made in this transaction"
        if model.is_deleting:
            raise being_deleted(name)
        if new.files:
            await self.check_ours(connection, name)
        if not await store.insert_version(connection, self._ids.fresh("ver"), model.model_id, new):
            if all(one.digest != new.digest for one in await store.versions_of(connection, model.model_id)):
                raise being_deleted(name)  # the same content, deleted by force and not quite gone
            return False
        await store.touch_model(connection, model.model_id)
        message = f"model {name} has a new version {new.digest[:19]}"
        await self._record(connection, "model_registered", name, message, digest=new.digest)
        return True

    async def copy(self, name: str, to: str, *, expected: int | None = None) -> None:
        """Give the version that `name` means (as for `deployable`) a second name; no file is copied.

        Raises:
            Failure: `registry.model_not_found`, `registry.version_not_found`, `registry.name_taken`,
                `request.invalid_name`, `request.version_conflict`.
        """
        checked_name("model", to)
        async with self._database.transaction() as connection:
            source, number = split_version(name)
            model, pinned = await self._meant(connection, source)
            check_version("model", model.name, model.resource_version, expected)
            number = pinned if number is None else number
            if number is None:
                version = newest(model.name, await store.versions_of(connection, model.model_id))
            else:
                version = await self.numbered(connection, model, number)
            await self.check_free(connection, to)
            if not await store.ensure_model(connection, self._ids.fresh("mod"), to):
                raise taken(to)
            copied = await self.named(connection, to)
            new = await self._same(connection, version)
            await store.insert_version(connection, self._ids.fresh("ver"), copied.model_id, new)
            await self._record(connection, "model_copied", to, f"model {to} was copied from {model.name}")

    async def register_again(self, connection: postgres.Connection, name: str, version: Version) -> bool:
        """Make the content of `version`, of any model, the next version of the model `name`, unless it is one already.

        Raises:
            Failure: `registry.name_taken` while a model of that name is being deleted.
        """
        return await self.register(connection, name, await self._same(connection, version))

    async def template(self, connection: postgres.Connection, version: Version) -> Template:
        """Return the chat template of one version."""
        return await file_store.template(connection, version.version_id)

    async def _same(self, connection: postgres.Connection, version: Version) -> NewVersion:
        """Return what registers the content of `version` once more."""
        template = await file_store.template(connection, version.version_id)
        files = await store.files_of(connection, version.version_id)
        return NewVersion(
            digest=version.digest,
            source=version.source,
            files=tuple(
                VersionFile(path=file.path, sha256=Sha256(file.sha256), size_bytes=file.size_bytes, source=file.source)
                for file in files
            ),
            format=version.format,
            size_bytes=version.size_bytes,
            facts=version.facts,
            chat_template_sha256=version.chat_template_sha256,
            chat_template=template.text,
            template_findings=tuple(template.findings),
        )

    async def delete(
        self,
        name: str,
        number: int | None = None,
        *,
        undeploy: Undeploy | None,
        expected: int | None = None,
        connection: postgres.Connection | None = None,
    ) -> None:
        """Delete a model, or its version `number`, when nothing uses it.

        With `undeploy` the aliases and deployments that use it go too: it vanishes from sight now, and for good when
        the last replica has.

        Raises:
            Failure: `registry.model_not_found`, `registry.version_not_found`, `registry.model_in_use`,
                `request.version_conflict`.
        """
        async with self._database.work(connection) as work:
            model = await self.locked(work, name, expected)
            version = None if number is None else await self.numbered(work, model, number)
            uses = [use for use in await store.uses(work, model.model_id) if number is None or use.number == number]
            await self._freed(work, version_text(name, number), uses, undeploy)
            if version is None:
                if not await store.delete_model(work, model.model_id):
                    await self._check_leaving(work, model, number, undeploy)
                    await store.hide_model(work, model.model_id)
                await self._record(work, "model_deleted", name, f"model {name} was deleted")
            else:
                if not await store.delete_version(work, version):
                    await self._check_leaving(work, model, number, undeploy)
                    await store.hide_version(work, version.version_id)
                await store.touch_model(work, model.model_id)
                message = f"version {number} of model {name} was deleted"
                await self._record(work, "version_deleted", name, message, digest=version.digest)
        self._wakeups.wake("model_deleted")

    async def _check_leaving(
        self, connection: postgres.Connection, model: Model, number: int | None, undeploy: Undeploy | None
    ) -> None:
        """Check that what still holds a model is on its way out; a deployment may have come since we looked."""
        uses = await store.uses(connection, model.model_id)
        come = [use for use in uses if not use.is_leaving and number in (None, use.number)]
        if come and undeploy is None:
            raise in_use(version_text(model.name, number), come)

    async def _freed(
        self, connection: postgres.Connection, what: str, uses: Sequence[Use], undeploy: Undeploy | None
    ) -> None:
        living = [use for use in uses if not use.is_leaving]
        if living and undeploy is None:
            raise in_use(what, living)
        for use in living:
            if use.kind == "alias":
                await alias_store.delete(connection, use.name)
                await self._record(connection, "alias_deleted", use.name, f"alias {use.name} was deleted")
            elif undeploy is not None:
                await undeploy(connection, use.name)

    async def check_free(self, connection: postgres.Connection, name: str) -> None:
        """Check that no alias is called `name`, so that a model may be.

        Raises:
            Failure: `registry.name_taken`.
        """
        if any(alias.name == name for alias in await alias_store.aliases(connection)):
            raise Failure(
                "registry.name_taken",
                f"{name!r} is an alias",
                hint="delete the alias first, or choose another name",
                param="name",
            )

    async def check_ours(self, connection: postgres.Connection, name: str) -> None:
        """Check that no version of the model `name` lies in an adopted engine: ours would be mixed with its own.

        Raises:
            Failure: `registry.name_taken`.
        """
        model = await store.model(connection, name)
        there = [] if model is None else await store.versions_of(connection, model.model_id)
        if any(places.is_adopted(version) for version in there):
            raise Failure(
                "registry.name_taken",
                f"the versions of model {name!r} lie in an adopted engine",
                hint="give what you pull another name",
                param="name",
            )

    async def unknown(self, connection: postgres.Connection, name: str) -> Failure:
        """Return the failure of a name that no model has."""
        known = [model.name for model in await store.models(connection)]
        hint = f"`slice pull {name}` brings it" if name in CATALOG else "`slice list` shows all"
        return Failure(
            "registry.model_not_found",
            f"there is no model {name!r}.{did_you_mean(name, known)}",
            hint=hint,
            param="model",
        )

    async def _record(
        self, connection: postgres.Connection, kind: str, name: str, message: str, **data: object
    ) -> None:
        happening = Happening(kind=kind, subject_kind=Subject.MODEL, subject=name, message=message, data=data)
        await self._events.record(connection, happening)


def newest(name: str, versions: Sequence[Version], formats: frozenset[str] | None = None) -> Version:
    """Return the last of `versions`, oldest first, that is not retired; one of `formats` before any other.

    Raises:
        Failure: `registry.version_not_found`.
    """
    usable = [version for version in versions if version.stage != Stage.RETIRED.value]
    if versions and not usable:
        raise Failure(
            "registry.version_not_found",
            f"every version of model {name!r} is retired",
            hint=f"name one, as {version_text(name, versions[-1].number)}, or move one back to candidate",
        )
    if not usable:
        raise Failure("registry.version_not_found", f"model {name!r} has no version", hint=f"`slice pull {name}`")
    eaten = [version for version in usable if formats is None or version.format in formats]
    return (eaten or usable)[-1]


def taken(name: str) -> Failure:
    """Return the failure of giving a name that a model has."""
    return Failure("registry.name_taken", f"a model named {name!r} exists", hint="choose another name", param="name")


def being_deleted(name: str) -> Failure:
    """Return the failure of using a name whose model is not quite gone."""
    return Failure(
        "registry.name_taken",
        f"model {name!r} is being deleted",
        hint="try again when its replicas have stopped",
        param="name",
    )


def in_use(what: str, uses: Sequence[Use]) -> Failure:
    """Return the failure of deleting a model or version (`what`) that `uses` need; it names them all."""
    words = []
    for kind, plural in (("deployment", "deployments"), ("alias", "aliases")):
        names = [use.name for use in uses if use.kind == kind]
        if names:
            words.append(f"{kind if len(names) == 1 else plural} {', '.join(names)}")
    return Failure(
        "registry.model_in_use",
        f"model {what!r} is used by {' and '.join(words)}",
        hint="delete those first, or use force",
    )
