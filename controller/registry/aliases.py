"""Aliases: stable public names that stand for a model, or for one version of it.

Comes in: names from the admin API. Goes out: rows, events, wake-ups; what an alias resolves to is decided by the route
table. Moving an alias is one row, so every door sees the old version or the new one, never neither.
"""

from controller.registry import alias_store, store
from controller.registry.model import Alias
from controller.registry.service import Registry, taken
from controller.versioned import check_version
from core.errors import Failure
from core.events import Happening, Subject
from core.infra import postgres
from core.names import checked_name, did_you_mean, split_version, version_text
from core.ports import EventLog, Wakeups


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
        expected: int | None = None,
        connection: postgres.Connection | None = None,
    ) -> Alias:
        """Let `name` stand for `target` from now on: a model, or a version of it as `m@v2`.

        Raises:
            Failure: `request.invalid_name`, `registry.name_taken`, `registry.model_not_found`,
                `registry.version_not_found`, `registry.alias_not_found`, `request.version_conflict`.
        """
        checked_name("alias", name)
        model_name, number = split_version(target)
        async with self._database.work(connection) as work:
            if await store.model(work, name) is not None:
                raise taken(name)
            await self._check(work, name, expected)
            model = await self._registry.named(work, model_name)
            version = None if number is None else await self._registry.numbered(work, model, number)
            if await alias_store.put(work, name, model.model_id, version.version_id if version else None):
                # No column says what it replaced; the events do.
                message = f"alias {name} stands for model {version_text(model_name, number)}"
                await self._record(work, "alias_set", model_name, message)
            made = next(alias for alias in await alias_store.aliases(work) if alias.name == name)
        self._wakeups.wake("alias_set")
        return made

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

    async def _record(self, connection: postgres.Connection, kind: str, subject: str, message: str) -> None:
        happening = Happening(kind=kind, subject_kind=Subject.MODEL, subject=subject, message=message)
        await self._events.record(connection, happening)
