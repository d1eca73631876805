"""The door's HTTP/1.1 client: pooled keep-alive connections to engines, with back-pressure.

Comes in: a target's address and the bytes of one request. Goes out: `Reply`, whose body is read piece by piece as it
came off the wire, chunk framing removed. Called by the relay only. It must not know OpenAI, retry what an engine may
have begun to answer, or buffer more than `HIGH_WATER_BYTES` of a reply.

Engines of the cluster speak plain HTTP on loopback; those on other machines are reached through their node's data
plane, by TLS with certificates of the cluster on both sides (`papers`); those that are not ours and run elsewhere have
an `Origin`, and are reached by TLS with checked certificates, at an address that `core.origins` allows. There is no
proxy, redirect, cookie or content coding here. Why not aiohttp: this costs 30 to 50 us of CPU a request instead of 120
(measured).
"""

import asyncio
import ipaddress
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import httptools

from core.clock import Clock
from core.origins import Origin, address_fault
from gateway.places import Address, Papers, Plane
from gateway.pulse import ANSWER_S, Pulse

HIGH_WATER_BYTES = 256 * 1024
"""Unread body at which a connection stops reading from the engine."""
LOW_WATER_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 2.0
REMOTE_CONNECT_TIMEOUT_S = 10.0
"""For engines that run elsewhere: a look-up, a connection and a TLS handshake over a long line."""
MAX_HEAD_BYTES = 64 * 1024
"""Largest head of a reply; llama.cpp and vLLM send under 1 KiB."""
IDLE_S = 3.0
"""Longest rest of a pooled connection: below the 5 s after which uvicorn and cpp-httplib close theirs."""
REMOTE_IDLE_S = 30.0
"""For engines that run elsewhere: a TLS handshake costs more than now and then a try on a connection that was closed;
load balancers close theirs after 60 s."""
MAX_IDLE_PER_ENGINE = 64
PLANE_SILENT_MS = 8000
"""How long a machine may acknowledge nothing before its connections count as broken: one that was cut off sends no
word, and a request on a resting connection would otherwise wait for its first byte for minutes."""


class EngineUnreachable(Exception):
    """Nobody accepts connections at the engine's address; the request was not sent."""


class EngineDied(Exception):
    """The connection ended, or turned to nonsense, before the reply was whole."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request to an engine: `headers` without host, length and connection, which are ours."""

    method: str
    path: str
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def head(self, address: Address) -> bytes:
        """Return the head in bytes, blank line included."""
        path = address.origin.prefix + self.path if address.origin else self.path
        lines = [f"{self.method} {path} HTTP/1.1\r\nhost: {address.authority}\r\n".encode()]
        lines += [name + b": " + value + b"\r\n" for name, value in self.headers]
        if address.plane is not None:
            lines.append(f"x-slice-replica: {address.replica_id}\r\n".encode())
            lines.append(f"x-slice-incarnation: {address.incarnation}\r\n".encode())
        lines.append(b"content-length: " + str(len(self.body)).encode() + b"\r\n\r\n")
        return b"".join(lines)


class EngineConnection(asyncio.Protocol):
    """One connection; carries one exchange at a time."""

    def __init__(self, place: Address | Plane) -> None:
        self.place = place
        self.is_reused = False
        self.idle_since = 0.0
        self.sent_at = self.heard_at = 0.0
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._pieces: deque[bytes] = deque()
        self._unread_bytes = 0
        self._head_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._is_paused = False
        self._is_framed = False
        self._has_head = False
        self._is_complete = True
        self._has_byte = False
        self._error: EngineDied | None = None
        self._keeps_alive = False
        self._is_spoiled = False
        self._time = asyncio.get_running_loop().time

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Turn Nagle off: small requests and a delayed ACK would cost 40 ms."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if isinstance(self.place, Plane):
                _notice_silence(sock)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; bytes that nobody asked for end the connection."""
        if self._is_complete or self._parser is None:
            self._fail("bytes outside a reply")
            self.abort()
            return
        self._has_byte = True
        self.heard_at = self._time()
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("malformed HTTP")
            self.abort()
        else:
            if not self._has_head and self._head_bytes > MAX_HEAD_BYTES:
                self._fail("an endless head")
                self.abort()
        self._wake()

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the reply: whole when its end was to be the connection's (RFC 9112, 6.3), else broken."""
        self._transport = None
        if not self._is_complete:
            if self._has_head and not self._is_framed and exc is None:
                self._is_complete = True
            else:
                self._fail("connection closed")
        self._keeps_alive = False
        self._wake()

    # What httptools calls.

    def on_message_begin(self) -> None:
        """Distrust a connection that goes on after its reply: never hand those bytes to anybody."""
        if self._has_head and self._is_complete:
            self._is_spoiled = True

    def on_status(self, _: bytes) -> None:
        """Begin a head; an interim one (100 Continue) is forgotten."""
        self.headers = []
        self._is_framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; the body is framed when a length or a coding says so."""
        lower = name.lower()
        if lower in (b"content-length", b"transfer-encoding"):
            self._is_framed = True
        self.headers.append((lower, value))

    def on_headers_complete(self) -> None:
        """Note the status."""
        status = self._parser.get_status_code()
        if status >= 200 and not self._is_spoiled:
            self.status = status
            self._has_head = True

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body; stop reading when too much waits."""
        if self._is_spoiled:
            return
        self._pieces.append(piece)
        self._unread_bytes += len(piece)
        if self._unread_bytes > HIGH_WATER_BYTES and not self._is_paused and self._transport is not None:
            self._transport.pause_reading()
            self._is_paused = True

    def on_message_complete(self) -> None:
        """End the exchange, unless it was an interim head."""
        if self._has_head:
            self._is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()

    # What the pool and the relay call.

    @property
    def is_usable(self) -> bool:
        """Whether another request may go out on this connection."""
        return self._transport is not None and not self._transport.is_closing() and self._is_complete

    @property
    def may_rest(self) -> bool:
        """Whether the exchange ended so that the connection can be pooled."""
        return self.is_usable and self._keeps_alive and not (self._pieces or self._error or self._is_spoiled)

    @property
    def is_untouched(self) -> bool:
        """Whether the engine sent not a byte of the current reply."""
        return not self._has_byte

    def send(self, request: Request, address: Address) -> None:
        """Write a request to `address`, to whose place this connection leads, and get ready for its reply."""
        if self._transport is None:
            raise EngineDied("connection closed")
        self._parser = httptools.HttpResponseParser(self)
        self.headers, self.status, self._error = [], 0, None
        self._has_head = self._is_complete = self._has_byte = self._keeps_alive = self._is_framed = False
        self._head_bytes = self._unread_bytes = 0
        self._pieces.clear()
        self.sent_at, self.heard_at = self._time(), 0.0
        self._transport.writelines([request.head(address), request.body])

    async def wait_head(self) -> None:
        """Return when the reply's head is here.

        Raises:
            EngineDied: it will never be.
        """
        while not self._has_head:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """Return all of the body that has arrived, at least a byte, or nothing at its end.

        Raises:
            EngineDied: the body broke off; what came before it was returned first.
        """
        while not self._pieces:
            if self._is_complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        data = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._unread_bytes = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def abort(self) -> None:
        """Close at once, unsent bytes forgotten; the engine sees the connection go and stops generating."""
        if self._transport is not None:
            self._transport.abort()

    def lose(self, reason: str) -> None:
        """End the reply for want of a word from the other end."""
        self._fail(reason)
        self.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, reason: str) -> None:
        if self._error is None:
            self._error = EngineDied(reason)
        self._wake()


class Reply:
    """The head of an engine's reply, and the way to its body; `close` it whatever happens."""

    def __init__(self, connection: EngineConnection, pool: "EnginePool") -> None:
        self.status = connection.status
        self.headers = connection.headers
        self._connection = connection
        self._pool = pool
        self._is_closed = False

    def header(self, name: bytes) -> bytes:
        """Return the value of the lower-case `name`, or nothing."""
        return next((value for key, value in self.headers if key == name), b"")

    async def read(self) -> bytes:
        """Return the next bytes of the body, or nothing at its end; see `EngineConnection.read`."""
        return await self._connection.read()

    def close(self) -> None:
        """Give the connection back when the body was read to its end, else close it at once; safe to call twice."""
        if not self._is_closed:
            self._is_closed = True
            self._pool.give_back(self._connection)


class EnginePool:
    """Connections to engines by address; used from one event loop."""

    def __init__(self, clock: Clock, papers: Papers | None = None) -> None:
        self._clock = clock
        self._papers = papers
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[Address | Plane, deque[EngineConnection]] = {}
        self.pulse = Pulse(self._answers, _loop_time)

    async def exchange(self, address: Address, request: Request) -> Reply:
        """Send `request` and return when the reply's head is here; cancelling it closes the connection.

        A pooled connection that its engine had closed meanwhile costs one more try on a fresh one, if not a byte of a
        reply came back (RFC 9112, 9.3.1).

        Raises:
            EngineUnreachable: no connection in time (`CONNECT_TIMEOUT_S`, `REMOTE_CONNECT_TIMEOUT_S`), or none that may
                be made: an address that is refused, a certificate that is not trusted.
            EngineDied: the connection ended before a head.
        """
        resting = self._take_idle(address.place)
        if resting is not None:
            resting.is_reused = True
            try:
                return await self._exchange_on(resting, request, address)
            except EngineDied:
                if not resting.is_untouched:
                    raise
        return await self._exchange_on(await self._connect(address), request, address)

    def give_back(self, connection: EngineConnection) -> None:
        """Pool `connection` when its exchange ended well, else close it."""
        if isinstance(connection.place, Plane):
            self.pulse.end(connection.place, connection)
        if not connection.may_rest:
            connection.abort()
            return
        resting = self._idle.setdefault(connection.place, deque())
        if len(resting) >= MAX_IDLE_PER_ENGINE:
            connection.abort()
            return
        connection.idle_since = self._clock.monotonic()
        resting.append(connection)

    def keep_only(self, addresses: frozenset[Address]) -> None:
        """Close the resting connections of every other address; exchanges under way go on."""
        places = {address.place for address in addresses}
        for place in [place for place in self._idle if place not in places]:
            for connection in self._idle.pop(place):
                connection.abort()

    def forget_planes(self) -> None:
        """Close the resting connections to data planes: the door has another certificate, or one was revoked."""
        for place in [place for place in self._idle if isinstance(place, Plane)]:
            for connection in self._idle.pop(place):
                connection.abort()

    def close(self) -> None:
        """Close every resting connection."""
        self.keep_only(frozenset())

    def _take_idle(self, place: Address | Plane) -> EngineConnection | None:
        resting = self._idle.get(place)
        is_near = isinstance(place, Address) and place.origin is None
        oldest = self._clock.monotonic() - (IDLE_S if is_near else REMOTE_IDLE_S)
        while resting:
            connection = resting.pop()
            if connection.is_usable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _exchange_on(self, connection: EngineConnection, request: Request, address: Address) -> Reply:
        try:
            connection.send(request, address)
            if address.plane is not None:
                self.pulse.begin(address.plane, connection)
            await connection.wait_head()
        except BaseException:
            connection.abort()
            if address.plane is not None:
                self.pulse.end(address.plane, connection)
            raise
        return Reply(connection, self)

    async def _connect(self, address: Address) -> EngineConnection:
        loop = asyncio.get_running_loop()
        if address.plane is not None:
            return await self._connect_plane(address.plane)
        if address.origin is not None:
            return await self._connect_out(address, address.origin)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(address), address.host, address.port
                )
        except (OSError, TimeoutError) as error:
            raise EngineUnreachable(f"{address.host}:{address.port}") from error
        return connection

    async def _answers(self, plane: Plane) -> bool:
        """Return whether a data plane says anything to another connection, be it no."""
        try:
            connection = await self._connect_plane(plane, ANSWER_S)
        except EngineUnreachable as error:
            return not isinstance(error.__cause__, TimeoutError)
        connection.abort()
        return True

    async def _connect_plane(self, plane: Plane, timeout_s: float = CONNECT_TIMEOUT_S) -> EngineConnection:
        """Connect to another machine's data plane, which must show its node's certificate, and one that is not revoked.

        A revoked one is somebody who took the plane's address over: routes lead to nobody who was forgotten.
        """
        if self._papers is None:
            raise EngineUnreachable(f"{plane.host}:{plane.port}")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                context = await self._papers.context()
                transport, connection = await loop.create_connection(
                    lambda: EngineConnection(plane),
                    plane.host,
                    plane.port,
                    ssl=context,
                    server_hostname=self._papers.name_of(plane),
                )
        except (OSError, TimeoutError) as error:
            raise EngineUnreachable(f"{plane.host}:{plane.port}") from error
        if self._papers.is_revoked(str(transport.get_extra_info("peercert")["serialNumber"])):
            connection.abort()
            raise EngineUnreachable(f"{plane.host}:{plane.port}")
        return connection

    async def _connect_out(self, address: Address, origin: Origin) -> EngineConnection:
        """Connect to the first address of `origin` that is allowed and answers; the name is looked up this once.

        Each gets its share of the time that is left, so that one that swallows everything leaves some to the next.
        """
        loop = asyncio.get_running_loop()
        reason: Exception | None = None
        until = loop.time() + REMOTE_CONNECT_TIMEOUT_S
        try:
            async with asyncio.timeout_at(until):
                context = await self._tls_context() if origin.is_tls else None
                name = origin.host if origin.is_tls else None
                places = await _allowed_places(origin)
                for tried, place in enumerate(places):
                    share_s = (until - loop.time()) / (len(places) - tried)
                    try:
                        async with asyncio.timeout(share_s):
                            _, connection = await loop.create_connection(
                                lambda: EngineConnection(address), place, origin.port, ssl=context, server_hostname=name
                            )
                    except OSError as error:
                        reason = error
                    else:
                        return connection
        except (OSError, TimeoutError) as error:
            reason = error
        raise EngineUnreachable(f"{origin.host}:{origin.port}") from reason

    async def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)  # reads the system's authorities
        return self._tls


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _notice_silence(sock: socket.socket) -> None:
    """Let the kernel end a connection whose other end vanished, whether we wait for it or it for us (tcp(7))."""
    third_s = max(1, PLANE_SILENT_MS // 3000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, third_s),
        (socket.TCP_KEEPINTVL, third_s),
        (socket.TCP_KEEPCNT, 2),
        (socket.TCP_USER_TIMEOUT, PLANE_SILENT_MS),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def _allowed_places(origin: Origin) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError("no name that can be looked up") from error
    places = [str(place[0]) for _, _, _, _, place in found]
    return [
        place
        for place in places
        if not address_fault(ipaddress.ip_address(place.partition("%")[0]), is_tls=origin.is_tls)
    ]
