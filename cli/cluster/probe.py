"""One HTTP GET on loopback, for readiness: no client library, so that the supervisor stays small."""

import asyncio


async def status_of(host: str, port: int, path: str, *, token: str = "", timeout_s: float = 2.0) -> tuple[int, bytes]:
    """Return the status and body of one GET; status 0 when nobody answers in time."""
    head = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
    if token:
        head += f"Authorization: Bearer {token}\r\n"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(head.encode() + b"\r\n")
                await writer.drain()
                answer = await reader.read(-1)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return 0, b""
    first, _, rest = answer.partition(b"\r\n")
    words = first.split(b" ")
    if len(words) < 2 or not words[1].isdigit():
        return 0, b""
    return int(words[1]), rest.partition(b"\r\n\r\n")[2]
