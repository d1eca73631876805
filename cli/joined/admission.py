"""The way in: from a join line to a certificate, believing nobody but the authority that the line pins.

Comes in: a `JoinLine` and who we are. Goes out: credentials, in memory alone. Called by `cli.joined.join`. The token is
sent only over a channel whose server has proven that it holds a certificate of the pinned authority.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc

from core.errors import CODES, Failure
from core.identities import Identity, Role
from core.infra import certificates, credentials
from core.infra.credentials import Credentials
from core.infra.grpc import secure_channel
from core.infra.version import VERSION
from core.joining import JoinLine, address
from core.protocols import SPOKEN
from protos.slice.node.v1 import node_pb2, node_pb2_grpc

_CONNECT_S = 10.0
_CALL_S = 15.0
_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Host:
    """Who takes joins there: the controller of `cluster_id`, proven by `authority_pem`, reached from `local_host`."""

    cluster_id: str
    authority_pem: str
    local_host: str


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """Who asks to join."""

    node_id: str
    node_name: str
    machine_id: str


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """What the controller answered: credentials that were checked, and the name that the node has got."""

    credentials: Credentials
    node_name: str
    is_approved: bool


async def host_of(line: JoinLine, now: datetime) -> Host:
    """Return who answers at the line's join port, once the pinned authority vouches for it; nothing secret is sent.

    Raises:
        Failure: `controller.unreachable`, `node.authority_mismatch`, or `node.certificate_invalid` when one of the two
            clocks is wrong.
    """
    chain, local_host = await asyncio.to_thread(_served, line)
    authority = next((item for item in chain if line.is_pinned(certificates.pin_of(item))), None)
    # A chain that merely contains the right authority proves nothing: the server's own must be signed by it.
    if authority is None or not credentials.is_signed(chain[0], authority):
        raise _mismatch(line)
    holder = certificates.holder_of(chain[0])
    if holder.identity.role is not Role.CONTROLLER:
        raise _mismatch(line)
    if fault := credentials.clock_fault(holder, now):
        raise Failure(
            "node.certificate_invalid",
            f"the controller's certificate {fault}",
            hint="set the clocks of both machines right (NTP), then join again with the same line",
        )
    return Host(cluster_id=holder.identity.cluster_id, authority_pem=authority, local_host=local_host)


async def admitted(line: JoinLine, host: Host, newcomer: Newcomer, now: datetime) -> Admitted:
    """Give the token away for a certificate that names `newcomer`.

    Raises:
        Failure: the controller refuses, with its code; it cannot be reached; or what it sent is not what was asked for.
    """
    identity = Identity(cluster_id=host.cluster_id, role=Role.NODE, name=newcomer.node_id)
    request = certificates.new_request(identity)
    reply = await _joined(line, host, newcomer, request.csr_pem)
    if reply.HasField("reject"):
        code = reply.reject.code if reply.reject.code in CODES else "node.join_token_invalid"
        raise Failure(code, reply.reject.message, hint=reply.reject.hint)
    given = Credentials(
        key_pem=request.key_pem, certificate_pem=reply.certificate_pem, authority_pem=reply.authority_pem
    )
    return Admitted(
        credentials=credentials.checked(given, identity, now),
        node_name=reply.node_name or newcomer.node_name,
        is_approved=reply.is_approved,
    )


async def _joined(line: JoinLine, host: Host, newcomer: Newcomer, csr_pem: str) -> node_pb2.JoinReply:
    controller = Identity(cluster_id=host.cluster_id, role=Role.CONTROLLER, name="0")
    asked = node_pb2.JoinRequest(
        protocol_min=SPOKEN.oldest,
        protocol_max=SPOKEN.newest,
        token_id=line.token_id,
        token_secret=line.secret,
        csr_pem=csr_pem,
        node_id=newcomer.node_id,
        node_name=newcomer.node_name,
        machine_id=newcomer.machine_id,
        agent_version=VERSION,
    )
    failed: grpc.aio.AioRpcError | None = None
    for _ in range(_ATTEMPTS):
        try:
            async with secure_channel(
                address(line.host, line.join_port), None, host.authority_pem, controller
            ) as channel:
                stub = node_pb2_grpc.NodeJoinStub(channel)  # type: ignore[no-untyped-call]  # generated
                reply: node_pb2.JoinReply = await stub.Join(asked, timeout=_CALL_S)
                return reply
        except grpc.aio.AioRpcError as error:
            # The answer may be what was lost: the same request again is answered although its token is used by now.
            failed = error
    assert failed is not None, "each attempt has answered or failed"
    raise _unreachable(line, f"{failed.code().name.lower()}: {failed.details()}") from None


def _served(line: JoinLine) -> tuple[list[str], str]:
    """Return the certificates that are served at the join port, the server's own first, and our end's address.

    Nothing is believed here, and nothing is sent: the chain is looked at, then the connection is closed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((line.host, line.join_port), timeout=_CONNECT_S) as plain:
            local_host = str(plain.getsockname()[0])
            with context.wrap_socket(plain) as secured:
                return list(_chain(secured)), local_host
    except ssl.SSLError as error:
        raise _unreachable(line, f"what answers there does not speak TLS as it should ({error.reason})") from None
    except socket.gaierror:
        raise _unreachable(line, "nobody knows that name") from None
    except OSError as error:
        raise _unreachable(line, error.strerror or "it did not answer in time") from None


def _chain(secured: ssl.SSLSocket) -> Iterator[str]:
    # Public since Python 3.13; in 3.11 and 3.12 the same call of the object below, which gives certificates.
    found: Any = secured if hasattr(secured, "get_unverified_chain") else secured._sslobj  # type: ignore[attr-defined]
    for item in found.get_unverified_chain() or ():
        der = item if isinstance(item, bytes) else ssl.PEM_cert_to_DER_cert(item.public_bytes())
        yield ssl.DER_cert_to_PEM_cert(der)


def _mismatch(line: JoinLine) -> Failure:
    return Failure(
        "node.authority_mismatch",
        f"the controller's CA at {address(line.host, line.join_port)} does not match the token; possible interception",
        hint="nothing was sent; make a new line on the controller's own machine with `slice node token create`",
        param="LINE",
    )


def _unreachable(line: JoinLine, why: str) -> Failure:
    return Failure(
        "controller.unreachable",
        f"no controller can be joined at {address(line.host, line.join_port)}: {why}",
        hint="it must run with --node-host, and a firewall must let the port of the line and the next one through",
    )
