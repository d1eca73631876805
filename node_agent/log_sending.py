"""Answers the controller's log requests, each on a call of its own so that no heartbeat waits behind a log.

Comes in: `LogRequest`s of one session. Goes out: `SendLog` streams. Used by `node_agent.session`; leaving the context
ends every stream.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from core.errors import Failure
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent import logs
from protos.slice.node.v1 import node_pb2

_STREAMS_AT_ONCE = 32
_TAIL_LINES_MAX = 100_000


class LogSender:
    """The log streams of one session."""

    def __init__(
        self, *, stub: Any, metadata: tuple[tuple[str, str], ...], path_of: Callable[[str], Path], log: Log
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._path_of = path_of
        self._log = log
        self._guard = TaskGuard(log)
        self._ends: dict[str, asyncio.Event] = {}

    def take(self, request: node_pb2.LogRequest) -> None:
        """Begin, or with `cancel` end, the stream of one request."""
        if request.cancel:
            if request.request_id in self._ends:
                self._ends[request.request_id].set()
            return
        if request.request_id in self._ends or len(self._ends) >= _STREAMS_AT_ONCE:
            return
        self._ends[request.request_id] = asyncio.Event()
        self._guard.brief(f"log {request.request_id}", self._send(request))

    async def _send(self, request: node_pb2.LogRequest) -> None:
        try:
            await self._stub.SendLog(self._chunks(request), metadata=self._metadata)
        except grpc.RpcError:
            pass  # nobody reads any more
        finally:
            self._ends.pop(request.request_id, None)

    async def _chunks(self, request: node_pb2.LogRequest) -> AsyncIterator[node_pb2.LogChunk]:
        name = request.request_id
        lines = min(request.tail_lines, _TAIL_LINES_MAX)
        try:
            path = self._path_of(request.replica_id)
            # Names the request before there is anything to say: a follower of a silent engine must be known too.
            yield node_pb2.LogChunk(request_id=name)
            async for text in logs.chunks(path, lines, follow=request.follow, ended=self._ends[name]):
                yield node_pb2.LogChunk(request_id=name, text=text)
            yield node_pb2.LogChunk(request_id=name, is_last=True)
        except Failure as failure:
            yield node_pb2.LogChunk(request_id=name, is_last=True, code=failure.code, message=str(failure))
        except OSError as error:
            yield node_pb2.LogChunk(
                request_id=name,
                is_last=True,
                code="replica.logs_unavailable",
                message=f"the log of {request.replica_id} cannot be read: {error.strerror}",
            )

    async def __aenter__(self) -> "LogSender":
        await self._guard.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._guard.__aexit__(kind, error, trace)
