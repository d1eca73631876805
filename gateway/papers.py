"""The door's certificate: what it shows to the data planes of other machines, and whom it takes for one.

Comes in: the controller's answers to `Certify`. Goes out: a TLS context. Owned by `door.Door`, used by the pool. Asks
for nothing before a table names a replica on another machine. The key never leaves this host: it lies with its
certificate in one 0600 file beside the route table, so that a door that starts without a controller still reaches
every machine.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from core.clock import Clock
from core.errors import Failure
from core.identities import Identity, Role
from core.infra import certificates
from core.infra.certificates import Holder
from core.infra.cluster import make_private_dir, write_private
from core.infra.grpc import CHANNEL_OPTIONS, bearer
from core.infra.logs import Log
from gateway.chance import Chance
from gateway.places import Plane
from protos.slice.routes.v1 import routes_pb2, routes_pb2_grpc

CERTIFY_TIMEOUT_S = 5.0
BACKOFF_S = (0.2, 30.0)
LONGEST_LOOK_S = 600.0
"""How long a certificate is trusted to be half-old only later: clocks may be set meanwhile."""


class DoorPapers:
    """One door's certificate, kept fresh; `on_renewed` hears of each new one."""

    def __init__(
        self,
        *,
        identity: Identity,
        directory: Path,
        target: str,
        token: str,
        clock: Clock,
        chance: Chance,
        log: Log,
        on_renewed: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._directory = directory
        self._target = target
        self._token = token
        self._clock = clock
        self._chance = chance
        self._log = log
        self._on_renewed = on_renewed
        self._is_wanted = asyncio.Event()
        self._is_there = asyncio.Event()
        self._context: ssl.SSLContext | None = None
        self._holder: Holder | None = None
        self._revoked: frozenset[int] = frozenset()

    def want(self) -> None:
        """Note that there is a replica on another machine."""
        self._is_wanted.set()

    async def context(self) -> ssl.SSLContext:
        """Return the TLS context with the door's certificate, waiting until there is one."""
        self.want()
        while self._context is None:
            await self._is_there.wait()
        return self._context

    def name_of(self, plane: Plane) -> str:
        """Return the name that the plane's certificate must have."""
        return Identity(cluster_id=self._identity.cluster_id, role=Role.NODE, name=plane.node_id).dns_name

    def is_revoked(self, serial: str) -> bool:
        """Return whether a certificate must not be trusted though it is signed and in date."""
        return int(serial, 16) in self._revoked

    def revoke(self, serials: Iterable[str]) -> bool:
        """Trust none of these certificates, and all others; returns whether one of them is news."""
        before, self._revoked = self._revoked, frozenset(int(serial, 16) for serial in serials)
        return not self._revoked <= before

    async def run(self) -> None:
        """Keep the certificate fresh until cancelled: asked for once wanted, and anew from half of its life on."""
        await self._is_wanted.wait()
        with contextlib.suppress(Failure, OSError):  # none yet, or a damaged or old one: the controller gives another
            await self._take_up()
        failures = 0
        while True:
            try:
                if self._is_due():
                    await self._certify()
                failures = 0
            except (Failure, OSError, grpc.aio.AioRpcError) as error:
                if failures == 0:
                    self._log.warning("door_certificate_failed", reason=_words(error))
                failures += 1
            first_s, cap_s = BACKOFF_S
            longest_s = min(cap_s, first_s * 2.0 ** min(failures, 16)) if failures else self._rest_s()
            await asyncio.sleep(self._chance.uniform(longest_s / 2, longest_s))

    def _is_due(self) -> bool:
        return self._holder is None or self._holder.is_due(self._clock.now())

    def _rest_s(self) -> float:
        assert self._holder is not None, "certified before"
        due_at = self._holder.valid_from + (self._holder.expires_at - self._holder.valid_from) / 2
        return min(LONGEST_LOOK_S, max(1.0, (due_at - self._clock.now()).total_seconds()))

    async def _take_up(self) -> None:
        """Use the certificate of an earlier door of this host while it is valid."""
        pair, authority = await asyncio.to_thread(self._read)
        holder = certificates.holder_of(pair)
        is_ours = (holder.identity.cluster_id, holder.identity.role) == (self._identity.cluster_id, Role.DOOR)
        if is_ours and self._clock.now() < holder.expires_at:
            await self._use(holder, authority)

    async def _certify(self) -> None:
        request = await asyncio.to_thread(certificates.new_request, self._identity)
        async with grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS) as channel:
            stub = routes_pb2_grpc.RoutesStub(channel)  # type: ignore[no-untyped-call]  # generated
            reply = await stub.Certify(
                routes_pb2.CertifyRequest(door_id=self._identity.name, csr_pem=request.csr_pem),
                metadata=bearer(self._token),
                timeout=CERTIFY_TIMEOUT_S,
            )
        if reply.code:
            raise Failure("node.certificate_invalid", f"the controller gives no certificate: {reply.message}")
        holder = certificates.holder_of(reply.certificate_pem)
        pair = f"{reply.certificate_pem.strip()}\n{request.key_pem.strip()}\n"
        await asyncio.to_thread(self._write, pair, reply.authority_pem)
        await self._use(holder, reply.authority_pem)
        self._log.info("door_certified", serial=holder.serial, expires_at=holder.expires_at.isoformat())

    async def _use(self, holder: Holder, authority: str) -> None:
        self._context = await asyncio.to_thread(_context_of, self._pair_file, authority)
        self._holder = holder
        self._is_there.set()
        self._on_renewed()

    @property
    def _pair_file(self) -> Path:
        return self._directory / "door.pem"

    @property
    def _authority_file(self) -> Path:
        return self._directory / "authority.pem"

    def _read(self) -> tuple[str, str]:
        return self._pair_file.read_text(), self._authority_file.read_text()

    def _write(self, pair: str, authority: str) -> None:
        make_private_dir(self._directory)
        # Each whole; doors of one host share the place, and any of their certificates serves all of them.
        write_private(self._authority_file, authority)
        write_private(self._pair_file, pair)


def _context_of(pair_file: Path, authority: str) -> ssl.SSLContext:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks names and certificates
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=authority)
        context.load_cert_chain(pair_file)
    except (ssl.SSLError, ValueError) as error:
        raise Failure("node.certificate_invalid", "the door's certificate or its key is damaged") from error
    return context


def _words(error: BaseException) -> str:
    return str(error.details()) if isinstance(error, grpc.aio.AioRpcError) else str(error)
