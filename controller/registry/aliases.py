"""Aliases: stable public names that stand for a model, or for one version of it.

Comes in: names from the admin API. Goes out: rows, events, wake-ups; what an alias resolves to is decided by the route
table. Moving an alias is one row, so every door sees the old version or the new one, never neither.
"""

from controller.registry import alias_store, store
from controller.registry.model import Alias, Model, Version
from controller.registry.service import Registry, taken
from controller.registry.templates import checked_template
from controller.versioned import check_version
from core.errors import Failure
from core.events import Happening, Subject
from core.infra import postgres
from core.names import checked_name, did_you_mean, split_version, version_text
from core.ports import EventLog, Wakeups
from core.states import Stage


class Aliases:
    """The aliases' one owner."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        registry: Registry,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
    ) -> None:
        self._database = database
        self._registry = registry
        self._events = events
        self._wakeups = wakeups

    async def aliases(self) -> list[Alias]:
        """Return every alias."""
        async with self._database.connection() as connection:
            return await alias_store.aliases(connection)

    async def put(
        self,
        name: str,
        target: str,
        *,
        approve_template: str | None = None,
        expected: int | None = None,
        connection: postgres.Connection | None = None,
    ) -> Alias:
        """Let `name` stand for `target` from now on: a model, or a version of it as `m@v2`.

        `approve_template` approves the chat template of that version, by its SHA-256, where `name` stands for a version
        in production, or for a model with one, of this model or another, that has another one.

        Raises:
            Failure: `request.invalid_name`, `request.invalid_field`, `registry.name_taken`, `registry.model_not_found`,
                `registry.version_not_found`, `registry.alias_not_found`, `registry.template_changed`,
                `request.version_conflict`.
        """
        checked_name("alias", name)
        model_name, number = split_version(target)
        if approve_template is not None and number is None:
            raise Failure(
                "request.invalid_field",
                f"a chat template is approved for one version, {target!r} names none",
                hint="name the version, as MODEL@vN, or leave approve_template out",
                param="approve_template",
            )
        async with self._database.work(connection) as work:
            if await store.model(work, name) is not None:
                raise taken(name)
            await self._check(work, name, expected)
            model = await self._registry.named(work, model_name)
            version = None if number is None else await self._registry.numbered(work, model, number)
            approved = ""
            if version is not None:
                approved = await self._approved(work, name, model, version, approve_template)
            if await alias_store.put(work, name, model.model_id, version.version_id if version else None):
                # No column says what it replaced; the events do.
                message = f"alias {name} stands for model {version_text(model_name, number)}"
                more = {"alias": name, "approved_template": approved} if approved else {}
                await self._record(work, "alias_set", model_name, message, **more)
            made = next(alias for alias in await alias_store.aliases(work) if alias.name == name)
        self._wakeups.wake("alias_set")
        return made

    async def _approved(
        self, connection: postgres.Connection, name: str, model: Model, version: Version, approve: str | None
    ) -> str:
        """Return the digest that `approve` newly approves: who asks for this alias must not meet another template."""
        await alias_store.locked(connection, name)
        alias = next((one for one in await alias_store.aliases(connection) if one.name == name), None)
        served = None if alias is None else await self._served(connection, alias)
        if served is None and approve is None:
            return ""
        command = f"slice alias set {name} {version_text(model.name, version.number)}"
        approved = await checked_template(
            connection, model, version, approve=approve, command=command, served=served or ()
        )
        return "" if served is None else approved

    async def _served(self, connection: postgres.Connection, alias: Alias) -> list[str] | None:
        """Return the templates that whoever asks for `alias` may talk through now, None when none is in production.

        1. It stands for a version: that one's.
        2. It stands for a whole model: any that a version of it in production has, or had.
        """
        model = await store.model(connection, alias.model)
        versions = [] if model is None else await store.versions_of(connection, model.model_id)
        live = [one for one in versions if one.stage == Stage.PRODUCTION.value]
        if alias.version is not None:  # 1
            found = next((one for one in live if one.number == alias.version), None)
            return None if found is None else [found.chat_template_sha256]
        if model is None or not live:
            return None
        return await alias_store.production_templates(connection, model.model_id)  # 2

    async def delete(
        self, name: str, *, expected: int | None = None, connection: postgres.Connection | None = None
    ) -> None:
        """Delete an alias.

        Raises:
            Failure: `registry.alias_not_found`, `request.version_conflict`.
        """
        async with self._database.work(connection) as work:
            await self._check(work, name, expected)
            if not await alias_store.delete(work, name):
                raise await self._unknown(work, name)
            await self._record(work, "alias_deleted", name, f"alias {name} was deleted")
        self._wakeups.wake("alias_deleted")

    async def _check(self, connection: postgres.Connection, name: str, expected: int | None) -> None:
        if expected is None:
            return
        current = await alias_store.locked(connection, name)
        if current is None:
            raise await self._unknown(connection, name)
        check_version("alias", name, current, expected)

    async def _unknown(self, connection: postgres.Connection, name: str) -> Failure:
        known = [alias.name for alias in await alias_store.aliases(connection)]
        return Failure(
            "registry.alias_not_found",
            f"there is no alias {name!r}.{did_you_mean(name, known)}",
            hint="`slice alias list` shows all",
        )

    async def _record(
        self, connection: postgres.Connection, kind: str, subject: str, message: str, **data: object
    ) -> None:
        happening = Happening(kind=kind, subject_kind=Subject.MODEL, subject=subject, message=message, data=data)
        await self._events.record(connection, happening)
