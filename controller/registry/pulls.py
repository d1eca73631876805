"""Pulls: bringing a version's files into a node's store and registering it.

Comes in: wishes from the admin API, file reports from nodes (through the reconcile loop, the only caller of `absorb`).
Goes out: pull rows, and with a finished one model, version and file in the same transaction. Nothing is registered of a
pull that failed.
"""

from collections.abc import Sequence

from adapters import registry as engines
from controller.exchange import FileReport
from controller.registry import file_store, store
from controller.registry.arrival import arrived
from controller.registry.catalog import BUILTIN, CATALOG
from controller.registry.model import Pull, Version
from controller.registry.service import Registry
from core.errors import CODES, Failure
from core.events import Happening, Subject
from core.ids import IdSource, NodeId
from core.infra import postgres
from core.names import checked_name, did_you_mean
from core.ports import EventLog, Wakeups
from core.sources import ModelSource, SourceKind, parse_source
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

    async def begin(
        self,
        name: str,
        source: str | None,
        engine: str | None = None,
        *,
        connection: postgres.Connection | None = None,
    ) -> Pull:
        """Begin to pull `source` (None: the catalogue's) as the model `name`, in a format that `engine` eats.

        Returns a pull that is done when the source pins what a version of any model has and a node holds, the running
        one when the same is under way, else a queued one.

        Raises:
            Failure: `request.invalid_name`, `source.not_found`, `source.invalid`, `source.unsupported`,
                `engine.unknown`, `engine.format_unsupported`, `registry.name_taken`, `storage.unavailable`.
        """
        checked_name("model", name)
        formats = formats_of(engine) if engine else ()
        text = source if source is not None else await self._catalogue_source(name)
        is_builtin = source is None and text.startswith(BUILTIN)
        asked = None if is_builtin else parse_source(text)
        async with self._database.work(connection) as work:
            await self._registry.check_free(work, name)
            if is_builtin:
                await self._registry.register_builtin(work, CATALOG[name])
            else:
                await self._registry.check_ours(work, name)
            model = await store.model(work, name)
            if model is not None and model.is_deleting:
                raise Failure("registry.name_taken", f"model {name!r} is being deleted", hint="try again in a moment")
            size = 0 if asked is None else await self._taken_over(work, name, asked, formats)
            state = PullState.QUEUED if size is None else PullState.DONE
            pull = await self._insert(work, name, text, engine or "", state, size or 0)
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
            hint=f"to pull another, say where it is, e.g. `slice pull {name} --source hf:ORG/NAME`",
            param="name",
        )

    async def _taken_over(
        self, connection: postgres.Connection, name: str, asked: ModelSource, formats: Sequence[str]
    ) -> int | None:
        """Let what `asked` pins be a version of `name` without any traffic; return its bytes, None when it cannot."""
        held = await self._held(connection)
        for version in await store.versions(connection):
            if not is_meant(version, asked, formats):
                continue
            digests = {file.sha256 for file in await store.files_of(connection, version.version_id)}
            if digests and any(digests <= there for there in held.values()):
                await self._registry.register_again(connection, name, version)
                await store.note_asked(connection, name, version.digest, asked.text)
                return version.size_bytes
        return None

    async def _held(self, connection: postgres.Connection) -> dict[str, set[str]]:
        held: dict[str, set[str]] = {}
        for place in await store.places(connection):
            held.setdefault(place.node_id, set()).add(place.sha256)
        return held

    async def _insert(
        self,
        connection: postgres.Connection,
        name: str,
        source: str,
        engine: str,
        state: PullState,
        size_bytes: int,
    ) -> Pull:
        pull_id = self._ids.fresh("pul")
        is_new = await store.insert_pull(
            connection,
            pull_id=pull_id,
            model_name=name,
            source=source,
            engine=engine,
            state=state.value,
            size_bytes=size_bytes,
        )
        pull = await (store.pull(connection, pull_id) if is_new else store.active_pull(connection, name, source))
        if pull is None:
            raise Failure("storage.unavailable", "the pull of the same source has just ended", hint="ask again")
        if pull.engine != engine:
            raise Failure(
                "registry.name_taken",
                f"this source is being pulled as {name!r} for {pull.engine or 'any engine'}",
                hint="wait for that pull, or cancel it, before you ask for another format",
                param="engine",
            )
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
        await file_store.replace_places(connection, node_id, held_files(reports))
        for report in reports:
            if report.want_id:
                await self._absorb_one(connection, node_id, report)
        await file_store.end_removals(connection, node_id)

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
            new = arrived(pull, report)
            async with connection.transaction():
                await self._registry.register(connection, pull.model_name, new)
                await store.note_asked(connection, pull.model_name, new.digest, pull.source)
        except Failure as failure:
            await self._fail(connection, pull, failure.code, failure.message, failure.hint)
            return
        if await store.end_pull(connection, pull.pull_id, state=PullState.DONE.value, size_bytes=new.size_bytes):
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


def is_meant(version: Version, asked: ModelSource, formats: Sequence[str]) -> bool:
    """Return whether `asked` pins the very content of `version`, and it is in one of `formats` (empty: in any).

    1. By the digest of its one file.
    2. By its source, where that names the same bytes for ever: a commit, a released package, or a manifest.
    """
    if formats and version.format not in formats:
        return False
    if asked.file_sha256 is not None:
        return version.digest == f"sha256:{asked.file_sha256}"
    if asked.manifest_sha256 is not None:
        return version.source == asked.text
    is_lasting = asked.kind is SourceKind.PYPI or asked.is_commit
    return is_lasting and version.source.partition("#")[0] == asked.text.partition("#")[0]


def formats_of(engine: str) -> tuple[str, ...]:
    """Return the formats of files that `engine` eats.

    Raises:
        Failure: `engine.unknown`, `engine.format_unsupported` for one that needs no files.
    """
    formats = tuple(sorted(engines.adapter(engine).formats - {""}))
    if not formats:
        raise Failure(
            "engine.format_unsupported",
            f"engine {engine} takes no files, so there is nothing to pull for it",
            hint="leave --engine out, or name one that serves a model of files",
            param="engine",
        )
    return formats


def held_files(reports: Sequence[FileReport]) -> dict[str, tuple[int, int]]:
    """Return size in bytes and Unix second of the last use of each content that `reports` say is stored.

    What the store itself reports goes before what a finished pull says of it.
    """
    held: dict[str, tuple[int, int]] = {}
    done = [report for report in reports if report.state is PullState.DONE]
    for report in done:
        for file in report.version_files:
            held[file.sha256] = (file.size_bytes, 0)
        if report.sha256 is not None and report.want_id:
            held.setdefault(report.sha256, (report.size_bytes, 0))
    for report in done:
        if report.sha256 is not None and not report.want_id:
            held[report.sha256] = (report.size_bytes, report.used_unix_s)
    return held
