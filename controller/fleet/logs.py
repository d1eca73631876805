"""Logs of replicas, relayed: a question goes down the node's session, the answer comes on a call of its own.

Comes in: a question from the admin API, chunks from the gRPC edge. Goes out: an iterator of bytes. Every wait has a
deadline but that of a followed log, which ends with its reader or with the node's session.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from controller.fleet.model import LogAsk
from controller.fleet.service import Fleet
from core.errors import Failure
from core.ids import IdSource, NodeId, ReplicaId

FIRST_CHUNK_S = 5.0
NEXT_CHUNK_S = 10.0
FOLLOW_CHECK_S = 5.0
"""How often a followed log looks whether its node is still connected."""
QUEUE_CHUNKS = 64


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One piece of a log; with a `code` it is the node's excuse instead."""

    text: bytes
    is_last: bool
    code: str = ""
    message: str = ""


class LogRelay:
    """Brings questions and answers together by their request id."""

    def __init__(self, *, fleet: Fleet, ids: IdSource) -> None:
        self._fleet = fleet
        self._ids = ids
        self._waiting: dict[str, asyncio.Queue[Chunk]] = {}

    def expects(self, request_id: str) -> bool:
        """Return whether somebody still waits for this answer."""
        return request_id in self._waiting

    async def deliver(self, request_id: str, chunk: Chunk) -> bool:
        """Hand over one chunk; return False when nobody wants it any more. Waits while the reader is slow."""
        queue = self._waiting.get(request_id)
        if queue is None:
            return False
        async with asyncio.timeout(60):
            await queue.put(chunk)
        return request_id in self._waiting

    async def read(
        self, node_id: NodeId, replica_id: ReplicaId, *, tail_lines: int, follow: bool
    ) -> AsyncIterator[bytes]:
        """Yield a replica's log: its last `tail_lines` lines, then with `follow` what comes.

        Raises:
            Failure: `replica.logs_unavailable` when the node is away, does not answer in time, or has no log.
        """
        session = self._fleet.session_of(node_id)
        if session is None:
            raise _unavailable("its node is not connected")
        request_id = self._ids.fresh("log")
        queue: asyncio.Queue[Chunk] = asyncio.Queue(QUEUE_CHUNKS)
        self._waiting[request_id] = queue
        ask = LogAsk(request_id=request_id, replica_id=replica_id, tail_lines=tail_lines, follow=follow)
        session.send(ask)
        is_ended, is_first = False, True
        try:
            while not is_ended:
                chunk = await self._next(queue, node_id, is_first=is_first, follow=follow)
                if chunk.code:
                    is_ended = True
                    raise Failure("replica.logs_unavailable", chunk.message or "the node has no such log")
                is_first, is_ended = False, chunk.is_last
                if chunk.text:
                    yield chunk.text
        finally:
            del self._waiting[request_id]
            if not is_ended:
                session.send(
                    LogAsk(request_id=request_id, replica_id=replica_id, tail_lines=0, follow=False, is_cancel=True)
                )

    async def _next(self, queue: asyncio.Queue[Chunk], node_id: NodeId, *, is_first: bool, follow: bool) -> Chunk:
        if follow and not is_first:
            while True:
                try:
                    async with asyncio.timeout(FOLLOW_CHECK_S):
                        return await queue.get()
                except TimeoutError:
                    if self._fleet.session_of(node_id) is None:
                        raise _unavailable("its node is no longer connected") from None
        try:
            async with asyncio.timeout(FIRST_CHUNK_S if is_first else NEXT_CHUNK_S):
                return await queue.get()
        except TimeoutError:
            raise _unavailable("its node did not answer in time") from None


def _unavailable(why: str) -> Failure:
    return Failure("replica.logs_unavailable", f"the log cannot be read: {why}", hint="try again", retry_after_s=2)
