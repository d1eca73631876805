"""A raw HTTP client for tests: bytes out, bytes in, nothing hidden."""

import asyncio
import json
from dataclasses import dataclass

from tests.gateway.conftest import KEY


@dataclass
class RawAnswer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def error(self) -> dict:
        return json.loads(self.body)["error"]


def request_bytes(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    given = {"host": "x", "authorization": f"Bearer {KEY}", "content-type": "application/json", **(headers or {})}
    if body or method == "POST":
        given.setdefault("content-length", str(len(body)))
    lines = "".join(f"{key}: {value}\r\n" for key, value in given.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


async def call(port: int, method: str, path: str, body: object = b"", headers: dict | None = None) -> RawAnswer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request_bytes(method, path, data, headers))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            pairs = [(key.lower(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]
            answer = RawAnswer(int(first.split()[1]), pairs, b"")
            if method != "HEAD":
                answer.body = await read_body(reader, dict(pairs))
            return answer
        finally:
            writer.transport.abort()


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    return body
