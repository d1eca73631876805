"""Bringing versions into the store: one job per source, shared by all who want it.

Comes in: `FileOrder`s, those of pulls (the whole set each time) and those of replicas (awaited). Goes out: stored files
and `FileProgress`. Called by `node_agent.supervisor` and `node_agent.runner`, on one event loop. A job that ends badly
or is cancelled leaves nothing in the store; what it downloaded may stay beside it for the next try. A job that does not
fit on the disk waits until it does.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from core.clock import Clock
from core.errors import Failure
from core.ids import Sha256
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from core.sources import ModelSource, parse_source
from core.states import PullState
from node_agent.files.arrivals import Arrivals
from node_agent.files.job import Job
from node_agent.files.room import Patience, Room
from node_agent.files.store import Cancelled, FileStore, StoredFile, StoredVersion, disk_errors, require_digest
from node_agent.files.wants import FileOrder, FileProgress
from node_agent.files.ways import Ways

_JOBS_AT_ONCE = 2  # more share one network line and disk without being faster


class Pulls:
    """Owns every job of the node."""

    def __init__(
        self,
        *,
        store: FileStore,
        room: Room,
        arrivals: Arrivals,
        guard: TaskGuard,
        clock: Clock,
        log: Log,
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._room = room
        self._arrivals = arrivals
        self._guard = guard
        self._clock = clock
        self._log = log
        self._changed = changed
        self._jobs: dict[str, Job] = {}
        self._pulls: dict[str, FileProgress] = {}
        self._orders: dict[str, FileOrder] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stored: dict[str, StoredFile] = {}
        self._is_leaving = False
        self._ways = Ways()
        self._slots = asyncio.Semaphore(_JOBS_AT_ONCE)

    # -- pulls: what the controller asks for and watches ----------------------------------------------------------

    def apply(self, orders: Sequence[FileOrder]) -> None:
        """Take the whole set of pulls: begin new ones, cancel cancelled ones, end and forget absent ones."""
        wanted = {order.want_id: order for order in orders if order.want_id}
        for want_id in set(self._pulls) - set(wanted):
            self._drop(want_id)
            self._pulls.pop(want_id)
        for want_id, order in wanted.items():
            if order.is_cancelled:
                self._cancelled(want_id)
            elif want_id not in self._pulls:
                self._orders[want_id] = order
                self._pulls[want_id] = FileProgress(want_id=want_id, state=PullState.QUEUED)
                self._tasks[want_id] = self._guard.brief(f"pull {want_id}", self._pull(order))
        self._changed()

    def know(self, orders: Iterable[FileOrder]) -> None:
        """Take every file that anybody here wants, with the ways to it of now."""
        self._ways.take(orders)

    def leave(self) -> None:
        """Say that the node agent ends: what is on its way stays where it is, for the next one to go on with."""
        self._is_leaving = True

    def stored(self) -> tuple[StoredFile, ...]:
        """Return what the store holds."""
        return tuple(self._stored.values())

    async def open(self) -> None:
        """Read the store's directory and remove what interrupted copies left; called once, before all else."""
        await asyncio.to_thread(self._store.sweep)
        await asyncio.to_thread(self._arrivals.sweep, self._clock.now().timestamp())
        self._stored = {stored.sha256: stored for stored in await asyncio.to_thread(self._store.all)}

    def progress(self) -> list[FileProgress]:
        """Return how far every pull is, those under way with their present bytes."""
        return [self._live(progress) for progress in self._pulls.values()]

    def _live(self, progress: FileProgress) -> FileProgress:
        order = self._orders.get(progress.want_id)
        job = self._jobs.get(order.key) if order else None
        if progress.state is PullState.QUEUED and order is not None and order.is_awaited:
            return replace(progress, message="another node brings it first")
        if job is None or progress.state is not PullState.QUEUED:
            return progress
        state = PullState.RUNNING if job.has_begun else PullState.QUEUED
        message = f"paused until there is room: {job.pause}" if job.pause is not None else ""
        return replace(progress, state=state, bytes_done=job.done_bytes, bytes_total=job.total_bytes, message=message)

    async def _pull(self, order: FileOrder) -> None:
        try:
            outcome = await (self._one_file(order) if order.is_one_file else self._whole_version(order))
        except Failure as failure:
            outcome = FileProgress(
                want_id=order.want_id, state=PullState.FAILED, code=failure.code, message=str(failure)
            )
        self._pulls[order.want_id] = outcome
        self._drop(order.want_id)
        self._changed()

    async def _whole_version(self, order: FileOrder) -> FileProgress:
        return _done(order.want_id, await self._version(await self._usable(order)))

    async def _one_file(self, order: FileOrder) -> FileProgress:
        stored = await self.ensure(order)
        return FileProgress(
            want_id=order.want_id,
            state=PullState.DONE,
            bytes_done=stored.size_bytes,
            bytes_total=stored.size_bytes,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
        )

    async def _usable(self, order: FileOrder) -> FileOrder:
        usable = await self._ways.usable(order)
        if order.want_id in self._orders:
            self._orders[order.want_id] = usable
        return usable

    def _cancelled(self, want_id: str) -> None:
        before = self._pulls.get(want_id)
        if before is not None and before.state is not PullState.QUEUED:
            return  # it has had its last word already
        self._drop(want_id)
        self._pulls[want_id] = FileProgress(
            want_id=want_id, state=PullState.CANCELLED, code="source.cancelled", message="the pull was cancelled"
        )

    def _drop(self, want_id: str) -> None:
        self._orders.pop(want_id, None)
        task = self._tasks.pop(want_id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    # -- one version or file ------------------------------------------------------------------------------------------

    async def ensure(self, order: FileOrder) -> StoredFile:
        """Return the stored file of an `order` for one file, fetched if need be, and note that it is used.

        Raises:
            Failure: why it cannot be had; `disk.full` at once when there is no room now and a replica waits for it.
        """
        if order.sha256 and (stored := await asyncio.to_thread(self._store.touch, Sha256(order.sha256))) is not None:
            self._stored[stored.sha256] = stored
            return stored
        order = await self._usable(order)
        if not order.source:
            raise Failure("source.invalid", f"file {order.sha256[:12]} is not on this node and has no source")
        version = await self._version(order)
        stored = await asyncio.to_thread(self._store.touch, Sha256(version.first.sha256))
        if stored is None:
            raise Failure("source.unreachable", f"{version.first.path} was removed while it was brought")
        self._stored[stored.sha256] = stored
        return stored

    async def remove(self, sha256: str) -> bool:
        """Take a file out of the store; return whether it is gone.

        It stays while a replica's directory has a link to it, or a job counts on it as a part that need not come.
        """
        if any(sha256 in job.held for job in self._jobs.values()):
            return False
        is_gone = await asyncio.to_thread(self._store.remove, sha256)
        if is_gone and self._stored.pop(sha256, None) is not None:
            self._log.info("file_removed", sha256=sha256)
            self._room.freed()
            self._changed()
        return is_gone

    async def _version(self, order: FileOrder) -> StoredVersion:
        """Return what `order` names; all who want the same share the work, which ends when nobody waits any more."""
        source = parse_source(order.source)
        if source.is_pinned:
            known = await asyncio.to_thread(self._store.recalled, order.key)
            if known is not None:
                require_digest(known.first.path, order.sha256, known.first.sha256)
                return known
        job = await self._job_of(order, source)
        job.waiters += 1
        try:
            outcome = await self._outcome(job, is_patient=bool(order.want_id))
        finally:
            job.waiters -= 1
            if job.waiters == 0 and not self._is_leaving:
                job.end()
        if isinstance(outcome, Failure):
            raise outcome
        require_digest(outcome.first.path, order.sha256, outcome.first.sha256)
        return outcome

    async def _outcome(self, job: Job, *, is_patient: bool) -> StoredVersion | Failure:
        """Wait for the job; a replica does not wait for room, since its own back-off does."""
        assert job.task is not None
        if is_patient:
            return await asyncio.shield(job.task)
        pausing = asyncio.ensure_future(job.paused.wait())
        try:
            await asyncio.wait({job.task, pausing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pausing.cancel()
        if not job.task.done() and job.pause is not None:
            return job.pause
        return await asyncio.shield(job.task)

    async def _job_of(self, order: FileOrder, source: ModelSource) -> Job:
        # A job that was told to end still works in the same directory: the next begins when it has left.
        key = order.key
        while (job := self._jobs.get(key)) is not None and job.is_unwanted:
            assert job.task is not None
            await asyncio.wait({job.task})
        if job is None:
            job = Job(self._room.promise(), self._changed)
            self._jobs[key] = job
            job.task = self._guard.brief(f"fetch {source.text}", self._work(order, source, job))
        return job

    async def _work(self, order: FileOrder, source: ModelSource, job: Job) -> StoredVersion | Failure:
        try:
            version = await self._brought(order, source, job)
        except Cancelled:
            return Failure("source.cancelled", "the pull was cancelled", hint="pull it again to begin anew")
        except Failure as failure:
            return failure
        except OSError as error:
            return Failure("disk.full", f"{source.file_name} cannot be stored: {error.strerror}", hint="check the disk")
        except Exception as error:  # noqa: BLE001 - the job's outermost frame: else its pulls stay queued for ever
            self._log.error("fetch_failed", source=source.text, error=repr(error), exc=error)
            return Failure(
                "source.invalid",
                f"{source.file_name} cannot be taken: something in it is not as we expect",
                hint="check where it comes from; the node agent's log says more",
            )
        finally:
            job.promise.release()
            if job.is_unwanted:
                await self._arrivals.drop(order)
            self._jobs.pop(order.key, None)
        for part in version.parts:
            if (stored := await asyncio.to_thread(self._store.touch, Sha256(part.sha256))) is not None:
                self._stored[part.sha256] = stored
        self._changed()
        self._log.info("files_stored", source=source.text, resolved=version.resolved_source, files=len(version.parts))
        return version

    async def _brought(self, order: FileOrder, source: ModelSource, job: Job) -> StoredVersion:
        patience = Patience(self._room, self._clock.monotonic)
        while True:
            try:
                async with self._slots:
                    job.begin()
                    with disk_errors():
                        return await self._arrivals.bring(order, source, job)
            except Failure as failure:
                if failure.code != "disk.full":
                    raise
                job.wait_for_room(await self._room.measured(failure, job.total_bytes - job.done_bytes))
                self._log.warning("pull_paused", source=source.text, reason=failure.message)
                await patience.wait(failure, job.done_bytes, job.total_bytes)


def _done(want_id: str, version: StoredVersion) -> FileProgress:
    size = sum(part.size_bytes for part in version.parts)
    return FileProgress(
        want_id=want_id,
        state=PullState.DONE,
        bytes_done=size,
        bytes_total=size,
        sha256=version.first.sha256,
        size_bytes=version.first.size_bytes,
        facts_json=version.facts.facts_json,
        chat_template_sha256=version.facts.chat_template_sha256,
        chat_template=version.facts.chat_template,
        template_findings=version.facts.template_findings,
        version_files=version.parts,
        resolved_source=version.resolved_source,
    )
