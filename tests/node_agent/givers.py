"""Nodes that give files: TLS that checks node certificates, in front of a real file server."""

import asyncio
import contextlib
import io
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from core.identities import Identity, Role
from core.ids import Sha256
from core.infra import certificates
from core.infra.clock import SystemClock
from core.infra.logs import Log
from node_agent.files.serving import FileServer
from node_agent.files.store import FileStore, StoredFile
from node_agent.files.wants import Peer
from tests.node_agent.benches import sha256

CLUSTER = "clu_test"
AUTHORITY = certificates.new_authority(CLUSTER, datetime.now(UTC))


def tls_dir(root: Path, name: str, role: Role = Role.NODE, authority: certificates.Authority = AUTHORITY) -> Path:
    """Make a directory with what a node that has joined holds: its key, its certificate and the authority's."""
    directory = root / f"tls-{name}"
    directory.mkdir(parents=True)
    identity = Identity(cluster_id=CLUSTER, role=role, name=name)
    request = certificates.new_request(identity)
    issued = certificates.issued(authority, request.csr_pem, identity, datetime.now(UTC))
    (directory / "key.pem").write_text(request.key_pem)
    (directory / "certificate.pem").write_text(issued.certificate_pem)
    (directory / "authority.pem").write_text(authority.certificate_pem)
    return directory


class Giver:
    """One node that gives files: its store, its file server, and mTLS before it.

    `body_bytes` counts what was passed on after the heads; after `cut_after` of them the lines are cut and none is
    taken any more, until it is None again.
    """

    def __init__(self, root: Path, name: str, store: FileStore | None = None, **more: object) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.name, self.root = name, root
        self.store = store or FileStore(root / "store")
        self.tls_dir = tls_dir(root, name)
        clock = SystemClock()
        self.server = FileServer(
            path=root / "files.sock",
            store=self.store,
            monotonic=clock.monotonic,
            log=Log("test", clock, io.StringIO()),
            **{"bytes_per_s": 0, **more},
        )
        self.body_bytes = 0
        self.requests = 0
        self.cut_after: int | None = None
        self.port = 0
        self._links: set[asyncio.StreamWriter] = set()
        self._counting = asyncio.Lock()

    @property
    def peer(self) -> Peer:
        return Peer(node_id=self.name, host="127.0.0.1", port=self.port)

    def put(self, data: bytes, digest: str = "") -> Sha256:
        """Put a file into the store, under another content's digest if that is given: a lie."""
        half = self.root / "half"
        half.write_bytes(data)
        return self.keep(half, Sha256(digest or sha256(data)))

    def keep(self, half: Path, digest: Sha256) -> Sha256:
        """Put a file that is there already into the store."""
        self.store.put(half, StoredFile(sha256=digest, size_bytes=half.stat().st_size))
        return digest

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.tls_dir / "certificate.pem", self.tls_dir / "key.pem")
        context.load_verify_locations(self.tls_dir / "authority.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on to the file server."""
        if self._is_cut:
            writer.transport.abort()
            return
        back_reader, back_writer = await asyncio.open_unix_connection(self.root / "files.sock")
        self._links |= {writer, back_writer}
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            back_writer.write(await reader.readuntil(b"\r\n\r\n"))
            self.requests += 1
            writer.write(await back_reader.readuntil(b"\r\n\r\n"))
            while await self._passed_on(back_reader, writer):
                pass
        back_writer.close()
        writer.close()

    async def _passed_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with self._counting:  # several connections share what is left before the cut
            if self._is_cut:
                return False
            left = 65536 if self.cut_after is None else self.cut_after - self.body_bytes
            data = await reader.read(min(65536, left))
            self.body_bytes += len(data)
            writer.write(data)
            await writer.drain()
            return bool(data)

    @property
    def _is_cut(self) -> bool:
        return self.cut_after is not None and self.body_bytes >= self.cut_after

    def end(self) -> None:
        for link in self._links:
            link.transport.abort()


@contextlib.asynccontextmanager
async def giver(root: Path, name: str, **more: object) -> AsyncIterator[Giver]:
    """Serve a `Giver` on a port of loopback."""
    it = Giver(root / name, name, **more)
    it.server.start()
    listener = await asyncio.start_server(it.serve, "127.0.0.1", 0, ssl=it.context())
    it.port = listener.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        listener.close()
        it.end()
        await asyncio.to_thread(it.server.stop)
