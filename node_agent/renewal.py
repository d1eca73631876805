"""Keeps this node's certificate fresh: from the middle of its life on it asks for the next one.

Comes in: the certificate on disk, the clock. Goes out: `NodeControl.Renew`, and `core.infra.credentials.store`. Started
once by `node_agent.agent`; its only memory is the certificate, so a restart loses nothing. It never touches the
session: that goes on over the old certificate and takes the new one at its next dial.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import grpc

from core.clock import Clock
from core.errors import CODES, Failure
from core.identities import Identity
from core.infra import certificates, credentials
from core.infra.certificates import Holder
from core.infra.credentials import Credentials
from core.infra.logs import Log
from node_agent.dialing import Way
from protos.slice.node.v1 import node_pb2, node_pb2_grpc

_CALL_DEADLINE_S = 20.0
_SPREAD = 0.1
"""Share of a life over which the nodes of a cluster that were joined together renew apart."""
_LOOK_EVERY_S = 300.0  # the loop's clock stands still while a machine is suspended, the certificate's does not
_BACK_OFF_BASE_S = 2.0
_BACK_OFF_CAP_S = 600.0


def due_in_s(holder: Holder | None, now: datetime, chance: float) -> float:
    """Return the seconds until a certificate is to be renewed, 0 when it is due or there is none.

    That is when half of its life is over and a share of up to a tenth more, which `chance` (0 to 1) says.
    """
    if holder is None:
        return 0.0
    life_s = (holder.expires_at - holder.valid_from).total_seconds()
    age_s = (now - holder.valid_from).total_seconds()
    return max(0.0, life_s * (0.5 + _SPREAD * chance) - age_s)


def back_off_s(attempt: int, left_s: float, chance: float) -> float:
    """Return the wait after failed `attempt` (from 0) with `left_s` seconds to live: 2 s x 2^n, at most ten minutes.

    At most a tenth of what is left, so that the last hours see many attempts; half of it is jitter.
    """
    cap_s = min(_BACK_OFF_CAP_S, left_s / 10.0) if left_s > 0.0 else _BACK_OFF_CAP_S
    return max(1.0, (0.5 + 0.5 * chance) * min(cap_s, _BACK_OFF_BASE_S * 2.0 ** min(attempt, 16)))


class Renewal:
    """One node's certificate in `tls_dir`; `renewed` is called after each new one, from the event loop."""

    def __init__(
        self,
        *,
        identity: Identity,
        tls_dir: Path,
        way: Way,
        clock: Clock,
        chance: Callable[[], float],
        log: Log,
        renewed: Callable[[], None] = lambda: None,
    ) -> None:
        self._identity = identity
        self._tls_dir = tls_dir
        self._way = way
        self._clock = clock
        self._chance = chance
        self._spread = chance()
        self._log = log
        self._renewed = renewed
        self._told = ""

    async def run(self) -> None:
        """Renew for ever."""
        attempt = 0
        while True:
            holder = await asyncio.to_thread(self._holder)
            wait_s = due_in_s(holder, self._clock.now(), self._spread)
            if wait_s <= 0.0:
                try:
                    await self.renew()
                except Failure as failure:
                    wait_s = back_off_s(attempt, self._left_s(holder), self._chance())
                    attempt += 1
                    self._tell(failure, holder)
                else:
                    attempt, self._told = 0, ""
                    wait_s = await asyncio.to_thread(self._rest_s)
            await _pause(min(wait_s, _LOOK_EVERY_S))

    async def renew(self) -> None:
        """Get one new certificate, for a new key, and put both in the place of the old ones.

        Raises:
            Failure: the controller cannot be reached or refuses, or what it sent is not what was asked for.
        """
        request = await asyncio.to_thread(certificates.new_request, self._identity)
        reply = await self._asked(request.csr_pem)
        given = Credentials(
            key_pem=request.key_pem, certificate_pem=reply.certificate_pem, authority_pem=reply.authority_pem
        )
        credentials.checked(given, self._identity, self._clock.now())
        try:
            await asyncio.to_thread(credentials.store, self._tls_dir, given)
        except OSError as error:
            raise Failure("disk.full", f"{self._tls_dir} cannot be written: {error.strerror}") from error
        self._log.info("certificate_renewed", serial=given.holder.serial, expires_at=given.holder.expires_at)
        self._renewed()

    async def _asked(self, csr_pem: str) -> node_pb2.RenewReply:
        try:
            async with await self._way.channel() as channel:
                stub = node_pb2_grpc.NodeControlStub(channel)  # type: ignore[no-untyped-call]  # generated
                reply: node_pb2.RenewReply = await stub.Renew(
                    node_pb2.RenewRequest(csr_pem=csr_pem), metadata=self._way.metadata, timeout=_CALL_DEADLINE_S
                )
        except grpc.aio.AioRpcError as error:
            raise Failure("controller.unreachable", f"{error.code().name.lower()}: {error.details()}") from None
        if reply.HasField("reject"):
            code = reply.reject.code if reply.reject.code in CODES else "node.certificate_invalid"
            raise Failure(code, reply.reject.message, hint=reply.reject.hint)
        return reply

    def _holder(self) -> Holder | None:
        try:
            found = credentials.load(self._tls_dir)
            return found.holder if found is not None else None
        except Failure:
            return None  # damaged: only a new one helps

    def _rest_s(self) -> float:
        """Return the least wait after a renewal: by a clock that is ahead, even a new certificate looks due."""
        return back_off_s(16, self._left_s(self._holder()), 1.0)

    def _left_s(self, holder: Holder | None) -> float:
        return (holder.expires_at - self._clock.now()).total_seconds() if holder is not None else 0.0

    def _tell(self, failure: Failure, holder: Holder | None) -> None:
        # A controller that is away for a day is one line, not hundreds.
        if failure.code != self._told:
            expires_at = holder.expires_at if holder is not None else None
            self._log.warning(
                "certificate_not_renewed", code=failure.code, message=failure.message, expires_at=expires_at
            )
        self._told = failure.code


async def _pause(seconds: float) -> None:
    """Wait for the next look at the certificate."""
    await asyncio.sleep(seconds)
