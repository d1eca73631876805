"""A tiny HTTP/1.1 engine that does what its script says, with faults: dies, stalls, cuts chunks anywhere, closes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Exchange:
    """One request as the engine got it, and the raw way back; `closed` is set when the door closes the connection."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    line: "_Line"

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def closed(self) -> asyncio.Event:
        return self.line.closed

    async def write(self, data: bytes) -> None:
        await self.line.writable.wait()
        self.line.transport.write(data)
        await asyncio.sleep(0)

    async def reply(
        self, body: bytes, *, status: int = 200, content_type: str = "application/json", extra: str = ""
    ) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        await self.write(head.encode() + body)

    async def begin_stream(self) -> None:
        await self.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self.write(b"0\r\n\r\n")

    def die(self) -> None:
        self.line.transport.abort()

    def hang_up(self) -> None:
        self.line.transport.close()


Script = Callable[[Exchange], Awaitable[None]]


class _Line(asyncio.Protocol):
    def __init__(self, engine: "ScriptedEngine") -> None:
        self.engine = engine
        self.closed = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.buffer = b""
        self.playing: asyncio.Task | None = None

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.engine.connections += 1
        self.engine.lines.add(self)

    def connection_lost(self, exc) -> None:
        self.closed.set()
        self.writable.set()
        self.engine.lines.discard(self)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    async def drained(self) -> None:
        """Wait until the kernel has taken everything, so that an abort loses nothing."""
        while self.transport.get_write_buffer_size():
            await asyncio.sleep(0)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        exchange = Exchange(method, path, headers, rest[:length], self)
        self.engine.exchanges.append(exchange)
        self.engine.arrived.set()
        self.playing = asyncio.ensure_future(self.engine.script(exchange))
        self.engine.tasks.add(self.playing)


@dataclass
class ScriptedEngine:
    """A server on a free loopback port; `script` answers each request and may be swapped between them."""

    script: Script
    port: int = 0
    exchanges: list[Exchange] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    lines: set[_Line] = field(default_factory=set)
    tasks: set[asyncio.Task] = field(default_factory=set)
    server: asyncio.Server | None = None

    async def __aenter__(self) -> "ScriptedEngine":
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: _Line(self), "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for line in list(self.lines):
            line.transport.abort()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def chat_chunk(text: str, *, model: str = "smollm2", finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    value = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def chat_answer(text: str = "hello", *, model: str = "smollm2") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    value = {"id": "c1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}
    return json.dumps(value, separators=(",", ":")).encode()


async def answering(exchange: Exchange) -> None:
    """The well-behaved engine: one short answer, streamed when asked to."""
    name = exchange.json["model"]
    if not exchange.json.get("stream"):
        await exchange.reply(chat_answer(model=name))
        return
    await exchange.begin_stream()
    for piece in ("Hel", "lo"):
        await exchange.chunk(chat_chunk(piece, model=name))
    await exchange.chunk(chat_chunk("", model=name, finish="stop"))
    await exchange.chunk(b"data: [DONE]\n\n")
    await exchange.end_stream()
