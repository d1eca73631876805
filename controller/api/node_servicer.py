"""slice.node.v1.NodeControl: the thin edge between a node's stream and the fleet.

Comes in: one bidirectional stream per node, and one call per log. Goes out: calls of `Fleet` and `LogRelay`. It decides
nothing; credentials are checked by the interceptor before it is reached.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import DecodeError

from adapters.contract import Runtime
from controller.api import node_wire
from controller.api.stage import END, Stage
from controller.fleet import service as fleets
from controller.fleet.logs import Chunk
from controller.fleet.model import Refuse, ReplicaOrder
from controller.fleet.service import Fleet, RefusedError
from core.apikeys import engine_key
from core.errors import Failure
from core.infra.logs import Log
from protos.slice.node.v1 import node_pb2 as pb
from protos.slice.node.v1 import node_pb2_grpc

HELLO_DEADLINE_S = 5.0
WRITE_DEADLINE_S = 10.0
_CHUNK_MAX = 256 * 1024


class NodeServicer(node_pb2_grpc.NodeControlServicer):
    """Serves nodes on the control socket."""

    def __init__(self, *, stage: Stage, engine_seed: bytes, log: Log) -> None:
        self._stage = stage
        self._engine_seed = engine_seed
        self._log = log

    async def Session(self, _: AsyncIterator[pb.NodeMessage], context: Any) -> None:
        """Serve one node until its stream or its session ends."""
        try:
            fleet = self._stage.parts().fleet
            session = await self._begin(fleet, context)
        except (Failure, RefusedError) as error:
            refusal = error.refusal if isinstance(error, RefusedError) else _refusal(error)
            self._log.warning("node_refused", code=refusal.code, message=refusal.message)
            await context.write(pb.ControllerMessage(reject=node_wire.reject(refusal)))
            return
        self._log.info("node_session", node=session.node_id, session_epoch=session.epoch)
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(fleet, session, context), name=f"read-{session.node_id}")
                await self._write(session, context)
                reader.cancel()
        finally:
            fleet.closed(session)
            self._log.info("node_session_ended", node=session.node_id, session_epoch=session.epoch)

    async def _begin(self, fleet: Fleet, context: Any) -> fleets.Session:
        try:
            async with asyncio.timeout(HELLO_DEADLINE_S):
                first = await _next(context)
        except TimeoutError:
            first = END
        if first is END or first.WhichOneof("body") != "hello":
            raise Failure("node.hello_required", f"the first message must be Hello, within {HELLO_DEADLINE_S:.0f} s")
        return await fleet.open(node_wire.hello(first.hello))

    async def _read(self, fleet: Fleet, session: fleets.Session, context: Any) -> None:
        try:
            while (message := await _next(context)) is not END:
                said = node_wire.node_message(session.node_id, message)
                if said is not None:
                    fleet.receive(session, said)
        except Failure as failure:
            session.send(_refusal(failure))
            return
        session.close()

    async def _write(self, session: fleets.Session, context: Any) -> None:
        while messages := await session.next_messages():
            for message in messages:
                async with asyncio.timeout(WRITE_DEADLINE_S):
                    await context.write(node_wire.render(message, self._key_of))

    def _key_of(self, order: ReplicaOrder) -> str:
        if order.runtime == Runtime.EXTERNAL:
            return self._stage.parts().secrets.vault.value(order.secret_name)
        return engine_key(self._engine_seed, order.replica_id)

    async def SendLog(self, _: AsyncIterator[pb.LogChunk], context: Any) -> pb.LogReceipt:
        """Hand one log on to whoever asked for it; end early when nobody wants it any more."""
        logs = self._stage.parts().logs
        while (chunk := await context.read()) is not END:
            piece = Chunk(
                text=chunk.text[:_CHUNK_MAX],
                is_last=chunk.is_last,
                code=chunk.code[:80],
                message=chunk.message[:2000],
            )
            if not await logs.deliver(chunk.request_id, piece) or chunk.is_last:
                break
        return pb.LogReceipt()


async def _next(context: Any) -> Any:
    """Return the next message of a stream, or END.

    Raises:
        Failure: `request.invalid_field` for bytes that are no message, such as a text that is no UTF-8.
    """
    try:
        return await context.read()
    except DecodeError as error:
        raise Failure("request.invalid_field", f"the node agent's message cannot be read: {error}") from error


def _refusal(failure: Failure) -> Refuse:
    retry_ms = int((failure.retry_after_s or 1.0) * 1000)
    return Refuse(
        code=failure.code,
        message=failure.message,
        hint=failure.hint,
        is_fatal=failure.code == "request.invalid_field",
        retry_after_ms=retry_ms,
    )
