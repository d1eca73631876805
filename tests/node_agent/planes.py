"""A data plane with real certificates, its HAProxy, and somebody who calls it."""

import asyncio
import contextlib
import hashlib
import itertools
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

from core.identities import Identity, Role
from core.infra import certificates
from core.infra.clock import SystemClock
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent.dataplane import plane as planes
from node_agent.dataplane.admin import Admin
from node_agent.dataplane.configuration import PATHS
from node_agent.dataplane.entries import PlaneEntry
from node_agent.dataplane.plane import Plane, PlaneSpec
from tests.gateway.scripted import Exchange
from tests.node_agent.nodes import free_ports
from tests.waiting import until_async

CLUSTER = "clu_1"
NODE = Identity(cluster_id=CLUSTER, role=Role.NODE, name="nod_a")
OTHER_NODE = Identity(cluster_id=CLUSTER, role=Role.NODE, name="nod_b")
DOOR = Identity(cluster_id=CLUSTER, role=Role.DOOR, name="door-1")
CHAT = "/v1/chat/completions"
FILE = "/slice/files/" + hashlib.sha256(b"x").hexdigest()
_numbers = itertools.count()


class Papers:
    """One cluster's authority and whom it gave certificates; `directory` holds their files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = certificates.new_authority(CLUSTER, datetime.now(UTC))
        self.roots = self.authority.certificate_pem

    def pair(self, identity: Identity, lifetime: timedelta = certificates.LIFETIME) -> tuple[str, str]:
        """Return a new key and its certificate."""
        request = certificates.new_request(identity)
        given = certificates.issued(self.authority, request.csr_pem, identity, datetime.now(UTC), lifetime)
        return request.key_pem, given.certificate_pem

    def equip(self, tls_dir: Path, identity: Identity = NODE) -> None:
        """Write the TLS files of a node, anew each time."""
        tls_dir.mkdir(exist_ok=True)
        key, certificate = self.pair(identity)
        texts = {"key.pem": key, "certificate.pem": certificate, "authority.pem": self.roots}
        for name, text in texts.items():
            (tls_dir / name).write_text(text)

    def context(self, identity: Identity | None, roots: str = "") -> ssl.SSLContext:
        """Return what a caller with a certificate of `identity`, or with none, connects with."""
        context = ssl.create_default_context(cadata=roots or self.roots)
        if identity is not None:
            key, certificate = self.pair(identity)
            file = self.directory / f"caller-{next(_numbers)}.pem"
            file.write_text(certificate + key)
            context.load_cert_chain(file)
        return context

    def known(self, identity: Identity, digits: int = 0) -> tuple[ssl.SSLContext, str]:
        """Return what a caller connects with and its certificate's serial, of so many digits if `digits` says it."""
        while True:
            key, certificate = self.pair(identity)
            serial = certificates.holder_of(certificate).serial
            if len(serial) == digits or not digits:
                break
        context = ssl.create_default_context(cadata=self.roots)
        file = self.directory / f"caller-{next(_numbers)}.pem"
        file.write_text(certificate + key)
        context.load_cert_chain(file)
        return context, serial


@dataclass
class Answer:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def fault(self) -> str:
        return self.headers.get("x-slice-fault", "")


@dataclass
class Caller:
    """One TLS connection to a plane."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, path=CHAT, replica="rep_a", incarnation=1, *, method="POST", body=b"{}", **more) -> None:
        headers = {"host": "plane", "x-slice-replica": replica, "x-slice-incarnation": str(incarnation), **more}
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
        self.writer.write(head.encode() + body)
        await self.writer.drain()

    async def head(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(first.split()[1]), headers, b"")

    async def chunk(self) -> bytes:
        """Return the next piece of a chunked body."""
        size = int(await self.reader.readline(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def ask(self, *args, **more) -> Answer:
        await self.send(*args, **more)
        answer = await self.head()
        answer.body = await self.reader.readexactly(int(answer.headers.get("content-length", 0)))
        return answer

    @property
    def certificate(self) -> bytes:
        """The certificate that the plane showed."""
        return self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)

    def close(self) -> None:
        self.writer.transport.abort()


@dataclass
class Site:
    """One node's plane and the papers of its cluster."""

    root: Path
    sockets: Path
    papers: Papers
    port: int = field(default_factory=lambda: free_ports(1)[0])
    logged: StringIO = field(default_factory=StringIO)
    callers: list[Caller] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.papers.equip(self.root / "tls")

    @property
    def spec(self) -> PlaneSpec:
        return PlaneSpec(
            host="127.0.0.1",
            port=self.port,
            tls_dir=self.root / "tls",
            directory=self.root / "plane",
            sockets=self.sockets,
            files_socket=self.sockets / "files.sock",
        )

    @contextlib.asynccontextmanager
    async def agent(self, **more: object) -> AsyncIterator[Plane]:
        """One life of a node agent: its end leaves HAProxy as it is."""
        clock = SystemClock()
        log = Log("node_agent", clock, self.logged)
        async with TaskGuard(log) as guard:
            plane = Plane(self.spec, guard=guard, clock=clock, chance=lambda: 0.5, log=log, **more)
            await plane.start()
            yield plane

    async def call(self, identity: Identity | None = DOOR, context: ssl.SSLContext | None = None) -> Caller:
        """Return a connection of `identity`."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            ssl=context or self.papers.context(identity),
            server_hostname=NODE.dns_name,
        )
        self.callers.append(Caller(reader, writer))
        return self.callers[-1]

    async def close(self) -> None:
        for caller in self.callers:
            caller.close()
        await planes.teardown(self.spec.directory, self.spec.sockets)
        shutil.rmtree(self.sockets, ignore_errors=True)


@contextlib.asynccontextmanager
async def a_site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path, Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp")), Papers(tmp_path))
    try:
        yield site
    finally:
        await site.close()


def entry(port: int, replica_id: str = "rep_a", incarnation: int = 1, paths: tuple[str, ...] = (CHAT,)) -> PlaneEntry:
    return PlaneEntry(replica_id=replica_id, incarnation=incarnation, port=port, paths=paths)


async def named(exchange: Exchange) -> None:
    await exchange.reply(b"engine", extra="x-slice-fault: forged\r\nx-engine: yes\r\n")


async def shown(site: Site, name: str, slot: str = "a") -> dict[str, str]:
    """Return what HAProxy's map holds now."""
    lines = (await Admin(site.sockets / f"haproxy-{slot}.sock").ask(f"show map {name}")).splitlines()
    return {key: value for _, key, value in (line.split() for line in lines)}


async def until_holds(site: Site, count: int, slot: str = "a") -> None:
    async def holds() -> bool:
        return len(await shown(site, PATHS, slot)) == count

    await until_async(holds, 5, f"{count} paths in the map")


async def until_status(site: Site, status: int, **more: object) -> None:
    async def is_it() -> bool:
        return (await (await site.call()).ask(**more)).status == status

    await until_async(is_it, 5, f"an answer {status}")
