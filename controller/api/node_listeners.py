"""The two TCP ports for other machines: sessions of joined nodes by mTLS, and joins by the controller's certificate.

Called by `controller.process` when the settings name an address for it. The controller's own certificate is made in
memory and replaced at half of its life without a connection being cut: gRPC asks for it at each handshake.
"""

import asyncio
from dataclasses import dataclass, field

import grpc

from controller.identity.certificates import Certificates
from core.clock import Clock
from core.errors import Failure
from core.identities import Role
from core.infra import certificates as pki
from core.infra.certificates import Holder
from core.infra.grpc import SERVER_OPTIONS
from core.infra.logs import Log
from core.joining import address
from protos.slice.node.v1 import node_pb2_grpc

CHECK_S = 600.0
"""How often the age of the certificate is looked at; it lives a day."""
_OPTIONS: tuple[tuple[str, int], ...] = (
    *SERVER_OPTIONS,
    # Two controllers on one port would each get half of the nodes.
    ("grpc.so_reuseport", 0),
    # Whoever connects and says nothing is cut soon.
    ("grpc.server_handshake_timeout_ms", 10_000),
)
_JOIN_OPTIONS = (*(option for option in _OPTIONS if option[0] != "grpc.max_receive_message_length"),)
_JOIN_MESSAGE_MAX = 64 * 1024
_JOINS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What a handshake shows and trusts; replaced as a whole."""

    key: bytes = field(repr=False)
    chain: bytes
    roots: bytes


class NodeListeners:
    """Both ports; `port` takes sessions, the next one joins."""

    def __init__(self, *, host: str, port: int, certificates: Certificates, clock: Clock, log: Log) -> None:
        self._host = host
        self._port = port
        self._certificates = certificates
        self._clock = clock
        self._log = log
        self._identity = certificates.identity(Role.CONTROLLER, "0")
        self._holder: Holder | None = None
        self._shown = _Shown(key=b"", chain=b"", roots=b"")
        self._sessions = grpc.aio.server(options=_OPTIONS)
        self._joins = grpc.aio.server(
            options=(*_JOIN_OPTIONS, ("grpc.max_receive_message_length", _JOIN_MESSAGE_MAX)),
            maximum_concurrent_rpcs=_JOINS_AT_ONCE,
        )

    def add(self, *, nodes: node_pb2_grpc.NodeControlServicer, joins: node_pb2_grpc.NodeJoinServicer) -> None:
        """Serve these services."""
        node_pb2_grpc.add_NodeControlServicer_to_server(nodes, self._sessions)  # type: ignore[no-untyped-call]
        node_pb2_grpc.add_NodeJoinServicer_to_server(joins, self._joins)  # type: ignore[no-untyped-call]

    async def start(self) -> None:
        """Get a certificate and listen.

        Raises:
            Failure: `cluster.port_taken` when an address cannot be listened on; as for `Certificates.issue`.
        """
        await self._certify()
        _listen(self._sessions, self._host, self._port, self._credentials(is_mutual=True))
        _listen(self._joins, self._host, self._port + 1, self._credentials(is_mutual=False))
        await self._sessions.start()
        await self._joins.start()
        self._log.info("nodes_may_join", host=self._host, port=self._port, join_port=self._port + 1)

    async def keep(self) -> None:
        """Replace the certificate when it is due, for ever."""
        while True:
            await asyncio.sleep(CHECK_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Replace the certificate if half of its life is over; connections that there are stay."""
        if self._holder is not None and not self._holder.is_due(self._clock.now()):
            return
        try:
            await self._certify()
        except Failure as failure:  # the old one is good for half a day yet
            self._log.warning("controller_not_certified", code=failure.code, message=failure.message)

    async def stop(self) -> None:
        """End all streams; they get half a second."""
        await asyncio.gather(self._sessions.stop(0.5), self._joins.stop(0.5))

    async def _certify(self) -> None:
        request = pki.new_request(self._identity)
        given = await self._certificates.issue(request.csr_pem, self._identity)
        authority = await self._certificates.authority.get()
        self._holder = pki.holder_of(given.certificate_pem)
        self._shown = _Shown(
            key=request.key_pem.encode(),
            # The root goes with it: who joins has only the hash of its key.
            chain=(given.certificate_pem + authority.certificate_pem).encode(),
            roots=authority.certificate_pem.encode(),
        )

    def _credentials(self, *, is_mutual: bool) -> grpc.ServerCredentials:
        given = self._shown

        def current() -> grpc.ServerCertificateConfiguration | None:
            """Return what to show from now on, None while it is what was shown last; runs in a thread of gRPC's.

            With a new answer at each handshake, some dozens of handshakes at once ended this process (seen with grpcio
            1.85.1: "sync.cc:104 Check failed: prior > 0"), and never since. Why is a guess: gRPC makes a new context of
            every answer but None, and may free the old one while other handshakes still reach for it. So one at the
            moment of a renewal, twice a day, may still meet it.
            """
            nonlocal given
            if self._shown is given:
                return None
            given = self._shown
            return _configuration(given, is_mutual=is_mutual)

        initial = _configuration(given, is_mutual=is_mutual)
        return grpc.dynamic_ssl_server_credentials(
            initial,
            current,  # type: ignore[arg-type]  # the stubs do not know of None
            require_client_authentication=is_mutual,
        )


def _configuration(shown: _Shown, *, is_mutual: bool) -> grpc.ServerCertificateConfiguration:
    roots = shown.roots if is_mutual else None
    return grpc.ssl_server_certificate_configuration([(shown.key, shown.chain)], roots)


def _listen(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials) -> None:
    try:
        bound = server.add_secure_port(address(host, port), credentials)
    except RuntimeError:
        bound = 0
    if bound != port:
        raise Failure(
            "cluster.port_taken",
            f"other machines cannot be listened for on {address(host, port)}",
            hint="--node-host must be an address of this machine, and its ports --node-port and the next one free",
            param="node_host",
        )
