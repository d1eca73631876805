"""A request's body, read with a cap and a deadline. Comes in: ASGI's `receive`. Goes out: bytes. Called by the app."""

import asyncio

from core.errors import Failure
from core.units import MIB, text_from_bytes
from gateway.visit import ClientGone, Receive

BASE_TIMEOUT_S = 30.0
TIMEOUT_PER_MIB_S = 1.0
"""A client gets 30 s plus 1 s for every MiB that it may send; a slow sender holds a connection no longer."""


DISCARD_LIMIT_BYTES = 64 * MIB
DISCARD_TIMEOUT_S = 10.0
DISCARD_PAUSE_S = 0.5
"""What is read and thrown away of a body that is too large: most clients read no answer before all is sent, and a
connection closed under them shows as a broken pipe instead of the reason. A client that pauses is waiting for us."""


async def read_body(receive: Receive, declared: bytes | None, limit_bytes: int) -> bytes:
    """Return the whole body; `declared` is the Content-Length header.

    Raises:
        Failure: `request.body_too_large` as soon as more than `limit_bytes` are announced or have come, or
            `request.body_timeout`.
        ClientGone: the client left.
    """
    if declared is not None and declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BASE_TIMEOUT_S + TIMEOUT_PER_MIB_S * limit_bytes / MIB):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientGone
                piece = message.get("body", b"")
                size += len(piece)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                pieces.append(piece)
                if not message.get("more_body", False):
                    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except TimeoutError:
        raise Failure(
            "request.body_timeout", "The request's body did not arrive in time", hint="send it again"
        ) from None


async def discard_body(receive: Receive) -> None:
    """Read on without keeping anything: at most `DISCARD_LIMIT_BYTES` and `DISCARD_TIMEOUT_S`, until a pause."""
    size = 0
    try:
        async with asyncio.timeout(DISCARD_TIMEOUT_S):
            while size < DISCARD_LIMIT_BYTES:
                async with asyncio.timeout(DISCARD_PAUSE_S):
                    message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _too_large(limit_bytes: int) -> Failure:
    return Failure(
        "request.body_too_large",
        f"The body is larger than {text_from_bytes(limit_bytes)}",
        hint="send less, or ask the operator to raise door_body_limit_bytes",
    )
