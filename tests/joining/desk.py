"""A controller's side of joining, small: a real authority, a join port that knows tokens, and sessions by mTLS.

The real one is proven in `tests/many`; this one can lie: serve another chain, refuse, or answer with what was not asked
for.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from core.identities import Identity, Role
from core.infra import certificates
from core.infra.certificates import Authority
from core.infra.grpc import SERVER_OPTIONS
from core.joining import JoinLine
from protos.slice.node.v1 import node_pb2, node_pb2_grpc
from tests.node_agent.controllers import Controller

CLUSTER = "clu_desk"
SECRET = "s" * 43


def now() -> datetime:
    return datetime.now(UTC)


def identity(name: str, role: Role = Role.NODE) -> Identity:
    return Identity(cluster_id=CLUSTER, role=role, name=name)


@dataclass(kw_only=True)
class Desk(node_pb2_grpc.NodeJoinServicer):
    """Takes joins; `answer` replaces what it would say, `reject` refuses."""

    authority: Authority = field(default_factory=lambda: certificates.new_authority(CLUSTER, now()))
    lifetime: timedelta = certificates.LIFETIME
    reject: node_pb2.Reject | None = None
    answer: node_pb2.JoinReply | None = None
    is_approving: bool = True
    lost_answers: int = 0
    asked: list[node_pb2.JoinRequest] = field(default_factory=list)

    async def Join(self, request: node_pb2.JoinRequest, context: Any) -> node_pb2.JoinReply:
        self.asked.append(request)
        if len(self.asked) <= self.lost_answers:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the line was cut")
        if self.reject is not None:
            return node_pb2.JoinReply(reject=self.reject)
        if self.answer is not None:
            return self.answer
        given = certificates.issued(
            self.authority, request.csr_pem, identity(request.node_id), now(), lifetime=self.lifetime
        )
        return node_pb2.JoinReply(
            cluster_id=CLUSTER,
            certificate_pem=given.certificate_pem,
            authority_pem=self.authority.certificate_pem,
            node_name=request.node_name,
            is_approved=self.is_approving,
        )


class SecureController(Controller):
    """The sessions' side: remembers which certificates it saw, and renews them unless told not to."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk = desk
        self.serials: list[str] = []
        self.renewed: list[str] = []
        self.refuse_renewal: node_pb2.Reject | None = None
        self.leaves: list[bool] = []
        self.remaining: list[node_pb2.Remaining] = []
        self.refuse_leave: node_pb2.Reject | None = None
        self.is_gone = False
        self.holds_answers = asyncio.Event()
        """Set: an answer to a leave is never sent, though what it asks for is done."""

    async def Session(self, requests: AsyncIterator[node_pb2.NodeMessage], context: Any) -> None:
        self.serials.append(_holder(context).serial)
        await super().Session(requests, context)

    async def Renew(self, request: node_pb2.RenewRequest, context: Any) -> node_pb2.RenewReply:
        if self.refuse_renewal is not None:
            return node_pb2.RenewReply(reject=self.refuse_renewal)
        who = _holder(context).identity
        given = certificates.issued(self.desk.authority, request.csr_pem, who, now(), lifetime=self.desk.lifetime)
        self.renewed.append(given.serial)
        return node_pb2.RenewReply(
            certificate_pem=given.certificate_pem, authority_pem=self.desk.authority.certificate_pem
        )

    async def Leave(self, request: node_pb2.LeaveRequest, context: Any) -> node_pb2.LeaveReply:
        self.leaves.append(request.is_final)
        if self.refuse_leave is not None:
            return node_pb2.LeaveReply(reject=self.refuse_leave)
        self.is_gone = self.is_gone or request.is_final
        if self.holds_answers.is_set():
            await asyncio.Event().wait()
        return node_pb2.LeaveReply(is_gone=self.is_gone, remaining=[] if self.is_gone else self.remaining)


def _holder(context: Any) -> certificates.Holder:
    return certificates.holder_of(context.auth_context()["x509_pem_cert"][0].decode())


@dataclass(kw_only=True)
class Served:
    """Where a desk and its controller serve."""

    desk: Desk
    controller: SecureController
    port: int

    def line(self, **changes: Any) -> str:
        values = {
            "host": "127.0.0.1",
            "port": self.port,
            "token_id": "tok_1",
            "secret": SECRET,
            "pin": self.desk.authority.pin[:32],
        }
        return JoinLine(**{**values, **changes}).text()


def free_pair() -> int:
    """Return a port that is free together with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError):
                second.bind(("127.0.0.1", port + 1))
                return port


def server_pair(authority: Authority, role: Role = Role.CONTROLLER, **issuing: Any) -> tuple[bytes, bytes]:
    """Return the controller's key and the chain that it serves: its own certificate, then the root."""
    who = identity("0", role)
    request = certificates.new_request(who)
    at = issuing.pop("at", now())
    own = certificates.issued(authority, request.csr_pem, who, at, **issuing).certificate_pem
    return request.key_pem.encode(), (own + authority.certificate_pem).encode()


@contextlib.asynccontextmanager
async def serving(
    desk: Desk, *, port: int = 0, chain: tuple[bytes, bytes] | None = None, controller: SecureController | None = None
) -> AsyncIterator[Served]:
    """Serve joins and sessions; `chain` replaces what the join port shows."""
    port = port or free_pair()
    controller = controller or SecureController(desk)
    own, root = server_pair(desk.authority), desk.authority.certificate_pem.encode()
    joins, sessions = grpc.aio.server(options=SERVER_OPTIONS), grpc.aio.server(options=SERVER_OPTIONS)
    node_pb2_grpc.add_NodeJoinServicer_to_server(desk, joins)
    joins.add_secure_port(f"127.0.0.1:{port + 1}", grpc.ssl_server_credentials([chain or own]))
    node_pb2_grpc.add_NodeControlServicer_to_server(controller, sessions)
    sessions.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([own], root, require_client_auth=True))
    await joins.start()
    await sessions.start()
    try:
        yield Served(desk=desk, controller=controller, port=port)
    finally:
        await asyncio.gather(joins.stop(0), sessions.stop(0))
