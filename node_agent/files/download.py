"""Files over HTTP into a partial file: in pieces at the same time where the server can, gone on with after every break.

Comes in: a `Remote`. Goes out: the SHA-256 of a whole file of the expected size. Called by `node_agent.files.arrivals`,
on the event loop; the waiting is done by a pool of threads of our own. A file that is not what was expected is removed.
"""

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from core.errors import Failure
from core.ids import Sha256
from core.infra.logs import Log
from node_agent.files import ranges
from node_agent.files.http_get import HttpGet, Interrupted
from node_agent.files.partial import discard
from node_agent.files.ranges import Range
from node_agent.files.store import Cancelled
from node_agent.files.transfer import Remote, Restart, Transfer, Watch

_CONNECTIONS = 8
_LANES = 4  # connections for one file: one alone does not fill a long line, more make hubs refuse
_GAIN_BYTES = 64 * 1024
_RESTARTS = 3
_GONE_ON_WITH = frozenset({"source.unreachable", "source.needs_token", "disk.full"})
_NOBODY = Watch(admit=lambda more: None, told=lambda done, total: None, look=lambda head: None)

T = TypeVar("T")


class Downloader:
    """Owns the threads; `fetch` may run many times at once."""

    def __init__(
        self,
        *,
        http: HttpGet,
        monotonic: Callable[[], float],
        log: Log,
        drops_after: frozenset[str] | None = None,
    ) -> None:
        """`drops_after` are the failures after which what has come is worth nothing; None: all but a broken line's."""
        self._http = http
        self._drops_after = drops_after
        self._monotonic = monotonic
        self._log = log
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="download")

    async def fetch(self, remote: Remote, path: Path, watch: Watch) -> Sha256:
        """Bring `remote` to `path`, return its SHA-256. What has come stays when the line breaks or we are cancelled.

        Raises:
            Failure: `source.*`, `format.refused`, `disk.full`.
        """
        work = Transfer(self._http, remote, watch, self._monotonic)
        try:
            try:
                await self._threaded(work, lambda: work.begin(path))
                return await self._brought(work)
            finally:
                await _to_the_end(work.end)
        except Failure as failure:
            if work.done_bytes == 0 or self._is_worthless(failure):
                await _to_the_end(lambda: discard(path))
            raise

    async def read(self, remote: Remote, limit_bytes: int) -> bytes:
        """Return a small file, such as a manifest.

        Raises:
            Failure: `source.*`; `source.invalid` when it has more than `limit_bytes`.
        """
        work = Transfer(self._http, remote, _NOBODY, self._monotonic)
        return await self._tried(work, lambda: 0, lambda: work.small(limit_bytes))

    def close(self) -> None:
        """Let the threads go; they end with what they are doing."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _is_worthless(self, failure: Failure) -> bool:
        if self._drops_after is not None:
            return failure.code in self._drops_after
        return failure.code not in _GONE_ON_WITH

    async def _brought(self, work: Transfer) -> Sha256:
        for _ in range(_RESTARTS):
            try:
                await self._all_pieces(work)
                digest = await self._threaded(work, work.digest)
            except Restart:
                await _to_the_end(work.restart)
                continue
            if not work.partial.was_resumed or work.is_right(digest):
                work.require_right(digest)
                return digest
            # What an earlier try left may be damaged: that is no word about the source.
            await _to_the_end(work.restart)
        raise Failure(
            "source.unreachable",
            f"{work.remote.name} changes while it is downloaded",
            hint="pull it again later, or pin a revision that does not move",
        )

    async def _all_pieces(self, work: Transfer) -> None:
        while not work.partial.is_whole:
            first = work.next_piece()
            # Alone: only its answer tells whether there is any sense in asking for others beside it.
            await self._piece(work, first, is_alone=True)
            size = work.partial.size
            if size is None:
                raise Restart
            todo = deque(ranges.pieces(ranges.missing(work.partial.had, size), self._http.bounds.piece_bytes))
            lanes = min(_LANES, len(todo)) if work.knows_ranges else 0
            await together([self._lane(work, todo) for _ in range(lanes)])

    async def _lane(self, work: Transfer, todo: deque[Range]) -> None:
        while todo:
            await self._piece(work, todo.popleft(), is_alone=False)

    async def _piece(self, work: Transfer, piece: Range, *, is_alone: bool) -> None:
        for gap in work.partial.gaps(piece):
            await self._tried(
                work, lambda: work.partial.done_bytes, functools.partial(work.take, gap, is_alone=is_alone)
            )

    async def _tried(self, work: Transfer, done: Callable[[], int], step: Callable[[], T]) -> T:
        """Do `step` until it ends; breaks after which nothing was gained are counted and answered by longer pauses."""
        bounds = self._http.bounds
        best, fruitless = done(), 0
        while True:
            try:
                return await self._threaded(work, step)
            except Interrupted as broken:
                gained, best = done() - best, max(best, done())
                fruitless = 0 if gained >= _GAIN_BYTES else fruitless + 1
                self._log.info("download_broke_off", file=work.remote.name, reason=str(broken), fruitless=fruitless)
                if fruitless >= bounds.attempts:
                    raise broken.failure from None
                pause_s = max(broken.pause_s, bounds.first_pause_s * 2.0**fruitless)
            await _pause(pause_s)

    async def _threaded(self, work: Transfer, step: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(self._pool, step)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # The thread still writes: its file may be touched only when it has seen the word and left.
            work.halt.set()
            with contextlib.suppress(Cancelled, Failure, Interrupted, OSError, Restart):
                await asyncio.wait({running})
                running.result()
            raise


async def together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all to their ends; the first that fails ends the others, and its exception is what is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _to_the_end(step: Callable[[], None]) -> None:
    """Do a short step in a thread; who is cancelled meanwhile goes on only when it has ended.

    Else the thread would write beside files that were removed in the belief that nobody works on them any more.
    """
    running = asyncio.ensure_future(asyncio.to_thread(step))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        running.exception()  # the cancel is what is told
        raise


async def _pause(seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()
