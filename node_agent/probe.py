"""One HTTP GET to an engine on loopback, and nothing but its status.

Called by `node_agent.runner` on a connection of its own each time, so that a probe never queues behind a stream.
"""

import asyncio
import contextlib


class ProbeError(Exception):
    """The engine did not answer in HTTP within the deadline; the text says how."""


async def status_of(host: str, port: int, path: str, timeout_s: float) -> int:
    """Return the status with which `http://host:port/path` answers within `timeout_s` seconds.

    Raises:
        ProbeError: no connection, no answer in time, or no HTTP.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _get(host, port, path)
    except TimeoutError:
        raise ProbeError(f"no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ProbeError(error.strerror or "the connection failed") from None


async def _get(host: str, port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        return await status_from(reader)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def status_from(reader: asyncio.StreamReader) -> int:
    """Return the status in the first line of an HTTP answer.

    Raises:
        ProbeError: it is none.
    """
    try:
        line = await reader.readline()
    except ValueError:
        raise ProbeError("its first line has no end") from None
    words = line.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ProbeError("it does not speak HTTP")
    return int(words[1])
