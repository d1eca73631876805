"""The way from this node to its controller: a unix socket on the controller's own machine, mTLS from any other.

Comes in: a gRPC target and what proves who we are. Goes out: channels, each with the credentials that are on disk now,
so that a renewed certificate is used at the next dial. Used by `node_agent.session` and `node_agent.renewal`.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import grpc

from core.errors import Failure
from core.identities import Identity, Role
from core.infra import credentials
from core.infra.grpc import CHANNEL_OPTIONS, bearer, secure_channel

_LOOK_S = 2.0
JOIN_AGAIN = (
    "make a line on the controller's machine with `slice node token create`, then `slice node join LINE --again` here"
)


@dataclass(frozen=True, kw_only=True)
class Way:
    """`target` is `unix:/PATH`, or HOST:PORT with the credentials of `tls_dir`; `token` is the unix socket's."""

    target: str
    token: str = field(default="", repr=False)
    cluster_id: str = ""
    tls_dir: Path | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        return bearer(self.token)

    async def channel(self) -> grpc.aio.Channel:
        """Return a new channel.

        Raises:
            Failure: `node.certificate_invalid` when there are no credentials.
        """
        if self.tls_dir is None:
            return grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        own = await asyncio.to_thread(credentials.load, self.tls_dir)
        if own is None:
            raise Failure("node.certificate_invalid", f"there is no certificate in {self.tls_dir}", hint=JOIN_AGAIN)
        controller = Identity(cluster_id=self.cluster_id, role=Role.CONTROLLER, name="0")
        return secure_channel(self.target, own, own.authority_pem, controller)

    async def is_refused(self) -> bool:
        """Return whether the controller's machine says that nobody listens; False when it says nothing."""
        try:
            async with asyncio.timeout(_LOOK_S):
                if self.target.startswith("unix:"):
                    _, writer = await asyncio.open_unix_connection(self.target.removeprefix("unix:"))
                else:
                    host, _, port = self.target.rpartition(":")
                    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except (OSError, ValueError):
            return False
        writer.close()
        return False

    async def fault(self, now: datetime) -> Failure | None:
        """Return what is wrong with our certificate at `now`: what a dial that failed does not tell by itself."""
        if self.tls_dir is None:
            return None
        try:
            own = await asyncio.to_thread(credentials.load, self.tls_dir)
            words = credentials.clock_fault(own.holder, now) if own is not None else "is missing"
        except Failure as failure:
            return failure
        return (
            Failure("node.certificate_invalid", f"this node's certificate {words}", hint=JOIN_AGAIN) if words else None
        )
