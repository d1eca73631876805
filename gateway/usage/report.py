"""The rows' way to the controller: a batch each second or each 500 rows, by disk while it is away.

Comes in: visits that have ended. Goes out: `ReportUsage` calls. `note` is called by the app, once a request, and only
makes the row; `run` is an eternal task of `door.Door`, and `flush` its last act. A row is sent until the controller has
said that it holds it; it keeps each once by its id. Where rows are given up they are counted, and the next batch tells.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import grpc

from core.clock import Clock
from core.errors import CODES, Retry
from core.infra.grpc import CHANNEL_OPTIONS, bearer
from core.infra.logs import Log
from gateway.usage.row import Rows
from gateway.usage.spool import Spool
from gateway.visit import Visit
from protos.slice.routes.v1 import routes_pb2, routes_pb2_grpc

SEND_S = 5.0
FLUSH_S = 2.0
"""Longest wait for the controller when the door ends; what it does not take by then goes to disk."""
MAX_WAITING = 20_000
"""Most rows in memory, 10 MiB: only a disk that does not answer lets so many wait."""

FILES_AT_A_TIME = 32
"""Files of the spool that go out before the rows that came meanwhile are looked after."""

Send = Callable[[routes_pb2.UsageBatch, float], Awaitable[routes_pb2.UsageReceipt]]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """When a batch goes out: after so many seconds, or once so many rows wait; it holds no more than those.

    A second is also the time between tries while the controller is away: it is on this machine, a try costs little.
    """

    seconds: float = 1.0
    rows: int = 500


_PACE = Pace()


class Reporter:
    """One door's rows until the controller holds them; `lost` counts those that were given up."""

    def __init__(
        self,
        *,
        door_id: str,
        target: str,
        token: str,
        rows: Rows,
        spool: Spool,
        clock: Clock,
        log: Log,
        pace: Pace = _PACE,
    ) -> None:
        self._door_id = door_id
        self._target = target
        self._token = token
        self._rows = rows
        self._spool = spool
        self._clock = clock
        self._log = log
        self._pace = pace
        self._waiting: list[routes_pb2.UsageRow] = []
        self._has_rows = asyncio.Event()
        self._is_full = asyncio.Event()
        self._is_behind = True  # files of an earlier door may lie there
        self._is_away = False
        self._untold = 0
        self.lost = 0

    def note(self, visit: Visit) -> None:
        """Take the row of a visit that has ended."""
        row = self._rows.of(visit, now_unix_s=self._clock.now().timestamp(), now_s=self._clock.monotonic())
        if row is None:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._give_up(1, "memory")
            return
        self._waiting.append(row)
        self._has_rows.set()
        if len(self._waiting) >= self._pace.rows:
            self._is_full.set()

    async def run(self) -> None:
        """Send rows for ever."""
        async with self._sender() as send:
            while True:
                if not self._is_behind:
                    await self._has_rows.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pace.seconds):
                        await self._is_full.wait()
                await self._pass_on(send, SEND_S)

    async def flush(self) -> None:
        """Send what waits, or put it on disk; called when `run` has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S), self._sender() as send:
                while self._waiting:
                    await self._pass_on(send, FLUSH_S)
        while rows := self._waiting[: self._pace.rows]:
            await self._keep(rows)
            del self._waiting[: len(rows)]
        await asyncio.to_thread(self._spool.close)

    @contextlib.asynccontextmanager
    async def _sender(self) -> AsyncIterator[Send]:
        async with grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS) as channel:
            stub = routes_pb2_grpc.RoutesStub(channel)  # type: ignore[no-untyped-call]
            yield lambda batch, timeout_s: stub.ReportUsage(batch, timeout=timeout_s, metadata=bearer(self._token))

    async def _pass_on(self, send: Send, timeout_s: float) -> None:
        """Send the files of an absence, then a batch of the rows that wait; where that fails they become a file."""
        if self._is_behind:
            self._is_behind = not await self._drained(send, timeout_s)
        rows = self._waiting[: self._pace.rows]
        # Taken off the list once they are safe: this may be cancelled anywhere, and a row sent twice is one row.
        if rows and (self._is_behind or not await self._is_sent(send, self._door_id, rows, timeout_s)):
            self._is_behind = True
            await self._keep(rows)
        del self._waiting[: len(rows)]
        if not self._waiting:
            self._has_rows.clear()
        if len(self._waiting) < self._pace.rows:
            self._is_full.clear()

    async def _drained(self, send: Send, timeout_s: float) -> bool:
        """Send the oldest files; return whether none is left that can be."""
        try:
            for _ in range(FILES_AT_A_TIME):
                taken = await asyncio.to_thread(self._spool.take)
                if taken is None:
                    return True
                try:
                    if taken.rows and not await self._is_sent(send, taken.door_id, taken.rows, timeout_s):
                        return False
                    self._spool.done(taken)
                finally:
                    self._spool.release(taken)
        except OSError as error:
            self._log.error("usage_spool_unusable", reason=error.strerror)
            return True
        return False

    async def _is_sent(self, send: Send, door_id: str, rows: list[routes_pb2.UsageRow], timeout_s: float) -> bool:
        """Send a batch; return whether the controller is done with it: holds it, or will never take it."""
        told = self._untold
        try:
            receipt = await send(routes_pb2.UsageBatch(door_id=door_id, rows=rows, lost_rows=told), timeout_s)
        except grpc.aio.AioRpcError as error:
            self._tell_away(error.code().name)
            return False
        if not receipt.code:
            self._untold -= told
            self._is_away = False
            return True
        if receipt.code in CODES and CODES[receipt.code][1] is Retry.NEVER:
            self._give_up(len(rows), receipt.code)
            return True
        self._tell_away(receipt.code)
        return False

    async def _keep(self, rows: list[routes_pb2.UsageRow]) -> None:
        unix_us = round(self._clock.now().timestamp() * 1e6)
        try:
            kept = await asyncio.to_thread(self._spool.append, rows, unix_us=unix_us)
        except OSError as error:
            self._give_up(len(rows), error.strerror or "disk")
            return
        if kept < len(rows):
            self._give_up(len(rows) - kept, "spool full")

    def _tell_away(self, code: str) -> None:
        if not self._is_away:
            self._is_away = True
            self._log.warning("usage_waits", code=code)

    def _give_up(self, count: int, reason: str) -> None:
        if self._untold == 0:
            self._log.error("usage_lost", rows=count, reason=reason)
        self.lost += count
        self._untold += count
