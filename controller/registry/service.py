"""The registry: models, versions, aliases, and what a deployment needs of them.

Comes in: names from the admin API. Goes out: rows, `DeployableVersion`, events. Pulls are next door in `pulls.py`.
A version is immutable; a model is never deleted under a deployment.
"""

import json

from adapters import facts as model_facts
from controller.exchange import DeployableVersion, VersionFile
from controller.registry import file_store, store
from controller.registry.catalog import CATALOG, CatalogEntry
from controller.registry.model import Alias, CatalogueOfModels, Model, NewVersion, Template, Version
from core.errors import Failure
from core.events import Happening, Subject
from core.ids import IdSource, ModelName, Sha256, VersionId
from core.infra import postgres
from core.names import checked_name, did_you_mean
from core.ports import EventLog, Wakeups


class Registry:
    """Models and aliases; writes through `postgres`, tells the reconcile loop through `wakeups`."""

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
            versions=tuple(await store.versions(connection)),
            files=tuple(await store.files(connection)),
            places=tuple(await store.places(connection)),
            aliases=tuple(await store.aliases(connection)),
        )

    async def model_in(self, connection: postgres.Connection, name: str) -> Model:
        """Return the model `name`, or the one that the alias `name` stands for.

        Raises:
            Failure: `registry.model_not_found`, with the name that was probably meant.
        """
        found = await store.model(connection, name)
        if found is None:
            for alias in await store.aliases(connection):
                if alias.name == name:
                    found = await store.model(connection, alias.model)
        if found is None or found.is_deleting:
            raise await self._unknown(connection, name)
        return found

    async def deployable(
        self, connection: postgres.Connection, name: str, formats: frozenset[str] | None = None
    ) -> DeployableVersion:
        """Return the newest version of the model `name`; one of the catalogue that needs no file is registered here.

        With `formats` it is the newest of those formats, if there is one.

        Raises:
            Failure: `registry.model_not_found`, `registry.version_not_found`.
        """
        entry = CATALOG.get(name)
        if entry is not None and entry.is_builtin:
            await self.register_builtin(connection, entry)
        model = await self.model_in(connection, name)
        versions = [one for one in await store.versions(connection) if one.model_id == model.model_id]
        fitting = [one for one in versions if formats is None or one.format in formats]
        if not versions:
            raise Failure("registry.version_not_found", f"model {name!r} has no version", hint=f"`slice pull {name}`")
        return await self._deployable(connection, model, (fitting or versions)[-1])

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

    async def register(self, connection: postgres.Connection, name: str, new: NewVersion) -> bool:
        """Make `new` the next version of the model `name`, in the transaction of `connection`.

        Returns False when this content is a version of it already.

        Raises:
            Failure: `registry.name_taken` while a model of that name is being deleted.
        """
        await store.ensure_model(connection, self._ids.fresh("mod"), name)
        model = await store.model(connection, name)
        assert model is not None, "made in this transaction"
        if model.is_deleting:
            raise being_deleted(name)
        if not await store.insert_version(connection, self._ids.fresh("ver"), model.model_id, new):
            return False
        message = f"model {name} has a new version {new.digest[:19]}"
        await self._record(connection, "model_registered", name, message, digest=new.digest)
        return True

    async def copy(self, name: str, to: str) -> None:
        """Give the newest version of `name` a second name; no file is copied.

        Raises:
            Failure: `registry.model_not_found`, `registry.name_taken`, `request.invalid_name`.
        """
        checked_name("model", to)
        async with self._database.transaction() as connection:
            model = await self.model_in(connection, name)
            await self.check_free(connection, to)
            version = await store.latest(connection, model.model_id)
            if version is None:
                raise Failure("registry.version_not_found", f"model {name!r} has no version")
            if not await store.ensure_model(connection, self._ids.fresh("mod"), to):
                raise _taken(to)
            copied = await store.model(connection, to)
            assert copied is not None, "made in this transaction"
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

    async def delete(self, name: str, *, force: bool) -> None:
        """Delete a model; with `force` one that is still deployed vanishes from sight now and for good later.

        Raises:
            Failure: `registry.model_not_found`, `registry.model_in_use`.
        """
        async with self._database.transaction() as connection:
            model = await store.model(connection, name)
            if model is None or model.is_deleting:
                raise await self._unknown(connection, name)
            if not await store.delete_model(connection, model.model_id):
                if not force:
                    raise in_use(name, ())
                await store.hide_model(connection, model.model_id)
            await self._record(connection, "model_deleted", name, f"model {name} was deleted")
        self._wakeups.wake("model_deleted")

    async def aliases(self) -> list[Alias]:
        """Return every alias."""
        async with self._database.connection() as connection:
            return await store.aliases(connection)

    async def put_alias(self, name: str, model_name: str) -> Alias:
        """Let `name` stand for the model `model_name` from now on.

        Raises:
            Failure: `request.invalid_name`, `registry.name_taken`, `registry.model_not_found`.
        """
        checked_name("alias", name)
        async with self._database.transaction() as connection:
            if await store.model(connection, name) is not None:
                raise _taken(name)
            model = await store.model(connection, model_name)
            if model is None or model.is_deleting:
                raise await self._unknown(connection, model_name)
            await store.put_alias(connection, name, model.model_id)
            await self._record(connection, "alias_set", model_name, f"alias {name} stands for model {model_name}")
        self._wakeups.wake("alias_set")
        return Alias(name=name, model=model_name)

    async def delete_alias(self, name: str) -> None:
        """Delete an alias.

        Raises:
            Failure: `registry.alias_not_found`.
        """
        async with self._database.transaction() as connection:
            if not await store.delete_alias(connection, name):
                known = [alias.name for alias in await store.aliases(connection)]
                raise Failure("registry.alias_not_found", f"there is no alias {name!r}.{did_you_mean(name, known)}")
            await self._record(connection, "alias_deleted", name, f"alias {name} was deleted")
        self._wakeups.wake("alias_deleted")

    async def check_free(self, connection: postgres.Connection, name: str) -> None:
        """Check that no alias is called `name`, so that a model may be.

        Raises:
            Failure: `registry.name_taken`.
        """
        if any(alias.name == name for alias in await store.aliases(connection)):
            raise Failure(
                "registry.name_taken",
                f"{name!r} is an alias",
                hint="delete the alias first, or choose another name",
                param="name",
            )

    async def _unknown(self, connection: postgres.Connection, name: str) -> Failure:
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


def _taken(name: str) -> Failure:
    return Failure("registry.name_taken", f"a model named {name!r} exists", hint="choose another name", param="name")


def being_deleted(name: str) -> Failure:
    """Return the failure of using a name whose model is not quite gone."""
    return Failure(
        "registry.name_taken",
        f"model {name!r} is being deleted",
        hint="try again when its replicas have stopped",
        param="name",
    )


def in_use(name: str, deployments: tuple[str, ...]) -> Failure:
    """Return the failure of deleting a model that `deployments` serve."""
    named = f" by {', '.join(deployments)}" if deployments else ""
    return Failure(
        "registry.model_in_use", f"model {name!r} is deployed{named}", hint="delete the deployment first, or use force"
    )
