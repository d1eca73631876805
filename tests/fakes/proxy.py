"""A line between two programs that can go bad: a TCP proxy that delays, resets, half-opens and hangs when told to.

Comes in: where it leads. Goes out: `port`, where it listens on loopback. Bytes go through as they are, so TLS ends
where it did. Used inside the event loop of a test; a fault holds for the connections that are open and those to come.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from enum import Enum

_PIECE = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger of socket(7): unsent bytes are forgotten, RST is sent


class Way(Enum):
    """A direction: `UP` from who dialled to where the line leads, `DOWN` back."""

    UP = "up"
    DOWN = "down"


class Proxy:
    """One such line."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._delays = dict.fromkeys(Way, 0.0)
        self._mute: set[Way] = set()
        self._is_hanging = False
        self._calls: set[_Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.accepted = 0

    @property
    def open(self) -> int:
        """How many connections are open at the side that dials."""
        return len(self._calls)

    def delay(self, seconds: float, *ways: Way) -> None:
        """Let every byte, and every end, come so much later; both ways unless they are named."""
        for way in ways or Way:
            self._delays[way] = seconds

    def mute(self, *ways: Way) -> None:
        """Swallow all that comes these ways, ends included, and acknowledge it: half-open, or with both ways dead."""
        self._mute |= set(ways or Way)

    def hang(self) -> None:
        """Accept and do nothing more, for connections to come; those that are open go on."""
        self._is_hanging = True

    def reset(self) -> int:
        """Reset every open connection, at both of its ends, and return how many there were."""
        calls = list(self._calls)
        for call in calls:
            call.reset()
        return len(calls)

    def heal(self) -> None:
        """Be a good line from now on; what was swallowed stays so, and a connection that lost bytes is reset."""
        for call in list(self._calls):
            if call.has_lost:
                call.reset()
        self._delays = dict.fromkeys(Way, 0.0)
        self._mute.clear()
        self._is_hanging = False

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End the line and all that is on it."""
        assert self._server is not None
        self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.ensure_future(self._serve(_Call(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, call: "_Call") -> None:
        self._calls.add(call)
        try:
            if self._is_hanging:
                await call.ended.wait()
                return
            try:
                reader, writer = await asyncio.open_connection(*self._target)
            except OSError:
                return
            call.far = writer
            works = [
                asyncio.ensure_future(self._carry(Way.UP, call, call.reader, writer)),
                asyncio.ensure_future(self._carry(Way.DOWN, call, reader, call.near)),
            ]
            try:
                await call.ended.wait()
            finally:
                for work in works:
                    work.cancel()
                await asyncio.wait(works)
        finally:
            call.reset()
            self._calls.discard(call)

    async def _carry(self, way: Way, call: "_Call", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one way; reading goes on while what was read waits for its time."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, piece = await waiting.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if way in self._mute:
                    call.has_lost = True
                elif piece is None:
                    writer.write_eof()
                    return
                else:
                    writer.write(piece)
                    await writer.drain()
                if piece is None:
                    await call.ended.wait()

        delivering = asyncio.ensure_future(deliver())
        try:
            while piece := await reader.read(_PIECE):
                waiting.put_nowait((loop.time() + self._delays[way], piece))
            waiting.put_nowait((loop.time() + self._delays[way], None))
            await delivering
            call.ways.discard(way)  # its end was passed on, which says nothing of the other way
            if not call.ways:
                call.ended.set()
        except OSError:
            if way in self._mute:  # nor is the other end told of a reset
                call.has_lost = True
                await call.ended.wait()
            call.reset()
        finally:
            delivering.cancel()


class _Call:
    def __init__(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.near = near
        self.far: asyncio.StreamWriter | None = None
        self.has_lost = False
        self.ways = set(Way)
        self.ended = asyncio.Event()

    def reset(self) -> None:
        self.ended.set()
        for writer in (self.near, self.far):
            sock = None if writer is None else writer.get_extra_info("socket")
            if writer is not None and sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()


@contextlib.asynccontextmanager
async def proxied(port: int, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """Give a line to `host`:`port`."""
    proxy = Proxy(host, port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
