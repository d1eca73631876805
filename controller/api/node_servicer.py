"""slice.node.v1.NodeControl: the thin edge between a node's stream and the fleet.

Comes in: one bidirectional stream per node, calls for certificates, and one call per log. Goes out: calls of `Fleet`,
`Certificates` and `LogRelay`. Serves the unix socket, whose interceptor has checked the bearer token, and the port of
joined nodes, where each call is its certificate's (`controller.api.callers`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from adapters.contract import Runtime
from controller.api import callers, node_orders, node_wire, parting
from controller.api.stage import END, Parts, Stage
from controller.fleet import service as fleets
from controller.fleet.logs import Chunk
from controller.fleet.model import Refuse, ReplicaOrder, Revoked
from controller.fleet.reception import RefusedError
from controller.fleet.service import Fleet
from core import protocols
from core.apikeys import engine_key
from core.clock import Clock
from core.errors import Failure
from core.identities import Identity, Role
from core.ids import NodeId
from core.infra.certificates import Holder, asked_identity
from core.infra.logs import Log
from protos.slice.node.v1 import node_pb2 as pb
from protos.slice.node.v1 import node_pb2_grpc

HELLO_DEADLINE_S = 5.0
WRITE_DEADLINE_S = 10.0
_CHUNK_MAX = 256 * 1024


class NodeServicer(node_pb2_grpc.NodeControlServicer):
    """Serves nodes, wherever they come in."""

    def __init__(self, *, stage: Stage, engine_seed: bytes, clock: Clock, log: Log) -> None:
        self._stage = stage
        self._clock = clock
        self._engine_seed = engine_seed
        self._log = log

    async def Session(self, _: AsyncIterator[pb.NodeMessage], context: Any) -> None:
        """Serve one node until its stream or its session ends."""
        try:
            parts = self._stage.parts()
            fleet = parts.fleet
            session, holder = await self._begin(parts, context)
        except (Failure, RefusedError) as error:
            refusal = error.refusal if isinstance(error, RefusedError) else _refusal(error)
            self._log.warning("node_refused", code=refusal.code, message=refusal.message)
            await context.write(pb.ControllerMessage(reject=node_orders.reject(refusal)))
            return
        self._log.info("node_session", node=session.node_id, session_epoch=session.epoch)
        unbind = self._bound(session, parts, holder)
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(fleet, session, context), name=f"read-{session.node_id}")
                teller = group.create_task(_tell_revoked(parts, session), name=f"revoked-{session.node_id}")
                await self._write(session, context)
                reader.cancel()
                teller.cancel()
        finally:
            unbind()
            fleet.closed(session)
            self._log.info("node_session_ended", node=session.node_id, session_epoch=session.epoch)

    async def _begin(self, parts: Parts, context: Any) -> tuple[fleets.Session, Holder | None]:
        try:
            async with asyncio.timeout(HELLO_DEADLINE_S):
                first = await _next(context)
        except TimeoutError:
            first = END
        if first is END or first.WhichOneof("body") != "hello":
            raise Failure("node.hello_required", f"the first message must be Hello, within {HELLO_DEADLINE_S:.0f} s")
        # Only now: a node whose stream ends while it still writes its hello never reads why.
        holder = callers.node_holder(context, parts.certificates)
        node_id = NodeId(first.hello.node_id)
        if holder is not None and node_id and holder.identity.name != node_id:  # without one it is no hello at all
            raise Failure(
                "node.certificate_invalid",
                f"the certificate names node {holder.identity.name}, the hello {node_id[:80]}",
                hint="a copied data directory? delete its node identity and join again",
            )
        parts.fleet.check_room(node_id)  # what is sent away is not even looked at
        hello = node_wire.hello(first.hello)
        return await parts.fleet.open(hello, is_remote=holder is not None), holder

    def _bound(self, session: fleets.Session, parts: Parts, holder: Holder | None) -> Callable[[], None]:
        """Let a session last no longer than the certificate that it came by; call what returns when it has ended."""
        if holder is None:
            return _nothing
        revoked = Refuse(
            code="node.certificate_invalid",
            message="this node's certificate was revoked",
            hint="join again with `slice node join`",
            is_fatal=True,
        )
        ended = Refuse(code="node.certificate_invalid", message="this session's certificate has run out")
        unwatch = parts.certificates.watch(holder.serial, lambda: session.close(revoked))
        left_s = (holder.expires_at - self._clock.now()).total_seconds()
        timer = asyncio.get_running_loop().call_later(max(0.0, left_s), session.close, ended)

        def unbind() -> None:
            timer.cancel()
            unwatch()

        return unbind

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
                    await context.write(node_orders.render(message, self._key_of))

    def _key_of(self, order: ReplicaOrder) -> str:
        if order.runtime == Runtime.EXTERNAL:
            return self._stage.parts().secrets.vault.value(order.secret_name)
        return engine_key(self._engine_seed, order.replica_id)

    async def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewReply:
        """Give a node its next certificate."""
        try:
            parts = self._stage.parts()
            holder = callers.node_holder(context, parts.certificates)
            identity = holder.identity if holder is not None else _own_identity(parts, request.csr_pem)
            by = holder.serial if holder is not None else ""
            given = await parts.certificates.renew(request.csr_pem, identity, by=by)
            authority = await parts.certificates.authority.get()
        except Failure as failure:
            self._log.warning("renewal_refused", code=failure.code, message=failure.message)
            return pb.RenewReply(reject=node_orders.reject(_refusal(failure)))
        self._log.info("node_certified", node=identity.name, serial=given.serial)
        return pb.RenewReply(certificate_pem=given.certificate_pem, authority_pem=authority.certificate_pem)

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveReply:
        """Let a node's work go elsewhere, then the node out of the cluster."""
        try:
            parts = self._stage.parts()
            holder = callers.any_node_holder(context, parts.certificates)
            reply = await parting.parted(parts, holder, is_final=request.is_final)
        except Failure as failure:
            self._log.warning("leave_refused", code=failure.code, message=failure.message)
            return pb.LeaveReply(reject=node_orders.reject(_refusal(failure)))
        if request.is_final:
            self._log.info("node_left", node=holder.identity.name if holder is not None else "")
        return reply

    async def SendLog(self, _: AsyncIterator[pb.LogChunk], context: Any) -> pb.LogReceipt:
        """Hand one log on to whoever asked for it; end early when nobody wants it any more."""
        parts = self._stage.parts()
        try:
            callers.node_holder(context, parts.certificates)
        except Failure as failure:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{failure.code}: {failure.message}")
        logs = parts.logs
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

    async def SendTelemetry(self, _: AsyncIterator[pb.Telemetry], context: Any) -> pb.TelemetryReceipt:
        """Keep what one node measures, until its session ends."""
        try:
            parts = self._stage.parts()
            holder = callers.node_holder(context, parts.certificates)
            while (message := await _next(context)) is not END:
                node_id = NodeId(node_wire.text(message.node_id, 80))
                if holder is not None and (
                    holder.identity.name != node_id or parts.certificates.is_revoked(holder.serial)
                ):
                    raise Failure(
                        "node.certificate_invalid", f"readings of {node_id} come by no certificate of its own"
                    )
                if not parts.fleet.measure(node_id, message.session_epoch, node_wire.telemetry(message)):
                    break
        except Failure as failure:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{failure.code}: {failure.message}")
        return pb.TelemetryReceipt()


_FATAL = frozenset({"request.invalid_field", "node.certificate_invalid", "node.csr_refused"})
"""Dialling again cannot cure these."""


def _own_identity(parts: Parts, csr_pem: str) -> Identity:
    """Return who asks on the unix socket: the node of this machine, if it is that and has said hello."""
    asked = asked_identity(csr_pem)
    if asked is None or asked != parts.certificates.identity(Role.NODE, asked.name):
        raise Failure("node.csr_refused", "the certificate request names no node of this cluster")
    if not parts.fleet.is_local(NodeId(asked.name)):
        raise Failure(
            "node.hello_required",
            f"{asked.name} is not known as the node of the controller's own machine",
            hint="it says hello first; a node of another machine asks with the certificate that it has",
        )
    return asked


async def _tell_revoked(parts: Parts, session: fleets.Session) -> None:
    """Tell a node which certificates its data plane must not trust any more, for as long as its session lasts."""
    told: frozenset[str] | None = None
    while session.state.protocol >= protocols.REVOCATIONS:
        told = await parts.certificates.next_revoked(told)
        session.send(Revoked(serials=told))


def _nothing() -> None:
    """Undo nothing."""


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
        is_fatal=failure.code in _FATAL,
        retry_after_ms=retry_ms,
    )
