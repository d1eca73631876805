"""One file from another node of the cluster: from the best that has it, from the next when that one fails or lies.

Comes in: a digest and the nodes that have its content. Goes out: a whole file of that digest. Called by
`node_agent.files.arrivals`. A peer's address is private and may be any: it is trusted because its data plane proves by
certificate to be that node, not because of where it is (`node_agent.files.reach` is not asked). What has come stays
when a peer breaks off, and the next one brings the rest; of a peer that lied nothing is kept.
"""

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from core.errors import Failure
from core.identities import Identity, Role
from core.ids import Sha256
from core.infra.logs import Log
from node_agent.files import asked
from node_agent.files.download import Downloader
from node_agent.files.halt import Halt
from node_agent.files.http_get import Bounds, HttpGet, unreachable
from node_agent.files.lines import connected, secured
from node_agent.files.reach import Origin
from node_agent.files.transfer import Remote, Watch
from node_agent.files.wants import Peer

BOUNDS = Bounds(
    connect_s=3.0, answer_s=10.0, silence_s=15.0, redirects=0, attempts=2, first_pause_s=0.2, piece_bytes=64 * 1024**2
)
"""Shorter than a stranger's: a machine of the cluster is near, and there is another one or the source to turn to."""
_LIES = frozenset({"source.digest_mismatch", "format.refused"})


class PeerLines:
    """Connections to data planes of nodes by mTLS; knows the addresses of those it was told of."""

    def __init__(self, *, tls_dir: Path | None, bounds: Bounds) -> None:
        """`tls_dir` holds this node's `key.pem`, `certificate.pem` and `authority.pem`; None when it has none."""
        self._tls_dir = tls_dir
        self._bounds = bounds
        self._places: dict[str, tuple[str, int]] = {}

    def url_of(self, peer: Peer, sha256: str) -> str:
        """Return the URL of a content on `peer`: under the name that its certificate has, which no resolver knows."""
        name = Identity(cluster_id="", role=Role.NODE, name=peer.node_id).dns_name
        self._places[name] = (peer.host, peer.port)
        return f"https://{name}{asked.PATH}{sha256}"

    def line(self, origin: Origin, halt: Halt, stack: contextlib.ExitStack) -> socket.socket:
        """Return a connection to the node that `origin` names, see `node_agent.files.http_get.Lines`."""
        place = self._places.get(origin.host)
        if place is None or origin.scheme != "https":
            raise Failure("source.not_allowed", f"{origin.host} is no node that files were to come from")
        host, port = place
        addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        line = connected(addresses, port, f"{host}:{port}", self._bounds, halt, stack)
        return secured(line, self._context(), origin.host, self._bounds, halt, stack)

    def _context(self) -> ssl.SSLContext:
        """Return a context anew: the node's certificate is renewed while it runs."""
        if self._tls_dir is None:
            raise unreachable("this node has no certificate that other nodes would know it by")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self._tls_dir / "authority.pem")
            context.load_cert_chain(self._tls_dir / "certificate.pem", self._tls_dir / "key.pem")
        except OSError:
            raise unreachable(f"this node's certificate below {self._tls_dir} cannot be read") from None
        return context


class Peers:
    """Brings files from peers; remembers which of them lied about what."""

    def __init__(
        self, *, tls_dir: Path | None, monotonic: Callable[[], float], log: Log, bounds: Bounds = BOUNDS
    ) -> None:
        self._lines = PeerLines(tls_dir=tls_dir, bounds=bounds)
        http = HttpGet(lines=self._lines, bounds=bounds, monotonic=monotonic)
        self._downloader = Downloader(http=http, monotonic=monotonic, log=log, drops_after=_LIES)
        self._log = log
        self._liars: set[tuple[str, str]] = set()

    async def fetch(self, peers: Sequence[Peer], remote: Remote, place: Path, watch: Watch) -> Sha256:
        """Bring the content `remote.sha256` to `place` from the first of `peers` that gives it; its URL is not used.

        Raises:
            Failure: `source.unreachable` with what each peer did, `disk.full`.
        """
        reasons = []
        for peer in peers:
            if (peer.node_id, remote.sha256) in self._liars:
                reasons.append(f"{peer.node_id} gave another content before")
                continue
            try:
                there = replace(remote, url=self._lines.url_of(peer, remote.sha256))
                digest = await self._downloader.fetch(there, place, watch)
            except Failure as failure:
                if failure.code == "disk.full":
                    raise
                reasons.append(f"{peer.node_id}: {failure.message}")
                self._note(peer, remote, failure)
            else:
                self._log.info("file_came_from_peer", file=remote.name, sha256=digest, peer=peer.node_id)
                return digest
        raise unreachable(f"no node gave {remote.name}: {'; '.join(reasons)}")

    def _note(self, peer: Peer, remote: Remote, failure: Failure) -> None:
        if failure.code in _LIES:
            self._liars.add((peer.node_id, remote.sha256))
            self._log.warning("peer_lied", file=remote.name, sha256=remote.sha256, peer=peer.node_id)
        else:
            self._log.info(
                "peer_failed", file=remote.name, peer=peer.node_id, code=failure.code, reason=failure.message
            )
