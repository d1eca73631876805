"""Stages: how far each version has come, with the history of its moves.

Comes in: moves that an operator (later RIA) asks for. Goes out: the version's stage, its event and its row of history,
all in one transaction. Which moves exist is `core.states.STAGE_MOVES`; a `StageGate` has a say in each, and
`controller.registry.templates` in those to production.
"""

from collections.abc import Sequence

from controller.registry import alias_store, store
from controller.registry.model import StageEvent
from controller.registry.service import Registry
from controller.registry.templates import checked_template
from core.errors import Failure
from core.events import Happening, Subject
from core.ids import ModelName, VersionId
from core.infra import postgres
from core.names import version_text
from core.ports import EventLog, StageGate, Wakeups
from core.states import STAGE_MOVES, Stage


class Stages:
    """The one writer of stages."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        registry: Registry,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        gate: StageGate[postgres.Connection] | None = None,
    ) -> None:
        self._database = database
        self._registry = registry
        self._events = events
        self._wakeups = wakeups
        self._gate = gate

    async def move(
        self,
        name: str,
        number: int,
        to: Stage,
        *,
        reason: str = "",
        approve_template: str | None = None,
        expected: int | None = None,
        connection: postgres.Connection | None = None,
    ) -> None:
        """Move version `number` of the model `name` to the stage `to`; where it is there already, nothing happens.

        `approve_template` approves the version's chat template for production, by its SHA-256.

        Raises:
            Failure: `registry.model_not_found`, `registry.version_not_found`, `registry.stage_conflict`,
                `registry.template_changed`, `request.invalid_field`, `request.version_conflict`.
        """
        if approve_template is not None and to is not Stage.PRODUCTION:
            raise Failure(
                "request.invalid_field",
                f"a chat template is approved for production, not for {to}",
                hint="leave approve_template out",
                param="approve_template",
            )
        async with self._database.work(connection) as work:
            model = await self._registry.locked(work, name, expected)
            version = await self._registry.numbered(work, model, number)
            before = Stage(version.stage)
            if before is to:
                return
            check_move(name, number, before, to)
            await self._check_gate(work, name, number, version.version_id, to)
            approved = ""
            if to is Stage.PRODUCTION:
                command = f"slice stage {version_text(name, number)} production"
                approved = await checked_template(work, model, version, approve=approve_template, command=command)
            await alias_store.move(work, version, to.value, reason, approved)
            await store.touch_model(work, model.model_id)
            happening = Happening(
                kind="stage_moved",
                subject_kind=Subject.MODEL,
                subject=name,
                message=f"version {number} of model {name} went from {before} to {to}",
                reason=reason,
                data={
                    "version": number,
                    "digest": version.digest,
                    "from": before.value,
                    "to": to.value,
                    **({"approved_template": approved} if approved else {}),
                },
            )
            await self._events.record(work, happening)
        self._wakeups.wake("stage_moved")

    async def _check_gate(
        self, connection: postgres.Connection, name: str, number: int, version_id: str, to: Stage
    ) -> None:
        if self._gate is None:
            return
        objection = await self._gate.objection(
            connection, model=ModelName(name), number=number, version_id=VersionId(version_id), to=to
        )
        if objection:
            raise Failure(
                "registry.stage_conflict",
                f"version {number} of model {name!r} may not go to {to}: {objection}",
                param="stage",
            )

    async def history(self, connection: postgres.Connection, name: str, number: int) -> Sequence[StageEvent]:
        """Return every move of a version, oldest first.

        Raises:
            Failure: `registry.model_not_found`, `registry.version_not_found`.
        """
        model = await self._registry.named(connection, name)
        version = await self._registry.numbered(connection, model, number)
        return await alias_store.history(connection, version.version_id)


def check_move(name: str, number: int, before: Stage, to: Stage) -> None:
    """Check that the table knows the move.

    Raises:
        Failure: `registry.stage_conflict`, with the moves that are allowed.
    """
    if to in STAGE_MOVES[before]:
        return
    allowed = ", ".join(stage.value for stage in Stage if stage in STAGE_MOVES[before])
    raise Failure(
        "registry.stage_conflict",
        f"version {number} of model {name!r} is {before}: it cannot go to {to}",
        hint=f"from {before} it may go to: {allowed}",
        param="stage",
    )
