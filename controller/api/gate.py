"""The outermost ASGI layer of the admin API: token, Host, size of the body, and the last word on faults.

Everything but `GET /health` needs the operator token. Paths are compared as the server decoded them
(`scope["path"]`); the URL that frameworks rebuild from the Host header is never asked (CVE-2026-48710).
"""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from hmac import compare_digest
from typing import Any

from controller.api.failures import response_to, unexpected
from core.errors import Failure
from core.infra.logs import Log

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_LIMIT_BYTES = 1024**2
BODY_DEADLINE_S = 30.0
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound to


class Gate:
    """Wraps the app; what it refuses never reaches a route."""

    def __init__(self, app: App, *, operator_token: str, host: str, log: Log) -> None:
        self._app = app
        self._expected = f"Bearer {operator_token}".encode()
        self._host = host.lower()
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the admin API serves http, not {scope['type']}")
        is_started = False

        async def watched_send(message: MutableMapping[str, Any]) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            self._check(scope)
            inner = await _bounded(scope, receive)
            await self._app(scope, inner, watched_send)
        except Failure as failure:
            if not is_started:
                await response_to(failure)(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the request's outermost frame
            self._log.error("request_failed", method=scope["method"], path=scope["path"][:200], exc=error)
            if not is_started:
                await response_to(unexpected())(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        is_open = scope["method"] == "GET" and scope["path"] == "/health"
        given = headers.get(b"authorization", b"")
        if not is_open and not given:
            raise Failure("auth.missing", "this call needs the operator token", hint="Authorization: Bearer TOKEN")
        if not is_open and not compare_digest(given, self._expected):
            raise Failure(
                "auth.invalid",
                "this is not the operator token",
                hint="it is in DATA/secrets/operator_token; keys of the front door do not work here",
            )
        if not self._is_our_host(headers.get(b"host", b"").decode("latin-1")):
            raise Failure("request.invalid_field", "this Host is not served here", hint="use the address it listens on")
        if any(ord(character) < 32 for character in scope["path"]):
            raise Failure("request.not_found", "there is nothing at this path")

    def _is_our_host(self, header: str) -> bool:
        name = _name_of(header)
        if name in _LOOPBACK_NAMES or name == self._host:
            return True
        # Bound to every address, it is reached by numbers we do not know; a rebound DNS name is never a number.
        return self._host in _WILDCARDS and _is_number(name)


def _name_of(header: str) -> str:
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Return a `receive` that replays the whole body, read within size and time; GET has none and is not waited for."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return receive
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > BODY_LIMIT_BYTES:
                    raise Failure("request.body_too_large", f"the body is larger than {BODY_LIMIT_BYTES} bytes")
                if message["type"] != "http.request" or not message.get("more_body", False):
                    break
    except TimeoutError:
        raise Failure(
            "request.body_timeout", f"the body did not arrive in {BODY_DEADLINE_S:.0f} s", hint="send it again"
        ) from None
    is_read = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return replay
