"""The ASGI layer below the gate that makes repeated requests safe: `Idempotency-Key` on every changing call.

Comes in: requests that passed the gate. Goes out: the app's answer, or the one that was kept. The key is claimed in the
database before the app is asked, so of several requests with one key one executes, whatever process they reach; the
others wait for it here. Only answers of what was done (below 400) are kept, for a day. See docs/decisions.
"""

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from controller.api import idempotency_store as store
from controller.api.gate import App, Receive, Scope, Send
from controller.api.stage import Stage
from core.errors import Failure
from core.infra import postgres

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
KEPT_LIMIT_BYTES = 256 * 1024
"""Largest answer that is kept; the largest of one thing is a few KiB."""
WAIT_S = 30.0
"""Longest wait for the first request with the same key: longer than any call but a client's patience."""
SECRET_FIELDS: Mapping[tuple[str, str], str] = {
    ("POST", "/api/v1/keys"): "key",
    ("POST", "/api/v1/nodes/tokens"): "line",
}
"""Fields of answers that are shown once and stored nowhere: a replayed answer has null there."""

_KEY = re.compile(rb"^[!-~]{1,255}\Z")
_CODE = "request.idempotency_conflict"


@dataclass(kw_only=True)
class _Answer:
    """A whole answer of the app."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    async def take(self, message: MutableMapping[str, Any]) -> None:
        """Take in one ASGI message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message.get("headers") or [])
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    async def send(self, send: Send) -> None:
        """Send it on."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": bytes(self.body)})


class Idempotency:
    """Wraps the app; `pepper` keys the digest of requests, whose bodies may hold secrets."""

    def __init__(self, app: App, *, stage: Stage, pepper: bytes) -> None:
        self._app = app
        self._stage = stage
        self._pepper = pepper
        self._running: dict[str, asyncio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            Failure: `request.invalid_field`, `request.idempotency_conflict`, `storage.unavailable`.
        """
        given = dict(scope["headers"]).get(b"idempotency-key")
        if given is None or scope["method"] not in CHANGING or not scope["path"].startswith("/api/v1/"):
            await self._app(scope, receive, send)
            return
        if not _KEY.match(given):
            raise Failure(
                "request.invalid_field",
                "this Idempotency-Key is not right",
                hint="use 1 to 255 visible ASCII characters, e.g. a fresh UUID",
                param="Idempotency-Key",
            )
        key = given.decode()
        database = self._stage.parts().database
        message = await receive()
        digest = self._digest(scope, message.get("body", b""))
        async with self._alone(key):
            async with database.transaction() as connection:
                kept = await store.claimed(connection, key, digest)
            if kept is None:
                answer = await self._executed(database, key, scope, _again(message, receive))
            else:
                answer = _replayed(kept, digest)
        await answer.send(send)

    def _digest(self, scope: Scope, body: bytes) -> str:
        parts = (
            scope["method"].encode(),
            scope["path"].encode(),
            scope.get("query_string", b""),
            dict(scope["headers"]).get(b"if-match", b""),
            hashlib.sha256(body).digest(),
        )
        text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._pepper, text, "sha256").hex()

    @asynccontextmanager
    async def _alone(self, key: str) -> Any:
        """Let one request at a time in per key, of those in this process."""
        try:
            async with asyncio.timeout(WAIT_S):
                while (other := self._running.get(key)) is not None:
                    await other.wait()
        except TimeoutError:
            raise Failure(
                _CODE, "the first request with this Idempotency-Key is still at work", hint="ask again later"
            ) from None
        done = self._running[key] = asyncio.Event()
        try:
            yield
        finally:
            del self._running[key]
            done.set()

    async def _executed(self, database: postgres.Database, key: str, scope: Scope, receive: Receive) -> _Answer:
        answer = _Answer()
        try:
            await self._app(scope, receive, answer.take)
        except Exception:
            # A fault of ours or a database that left: the same key may try again. Cancelled at shutdown is another
            # matter: nobody knows what was done, so the claim stays.
            await _released(database, key)
            raise
        if answer.status >= 400:
            await _released(database, key)
        else:
            await _kept(database, key, scope, answer)
        return answer


def _again(message: MutableMapping[str, Any], receive: Receive) -> Receive:
    """Return a `receive` that gives `message` once more."""
    given = [message]

    async def replay() -> MutableMapping[str, Any]:
        return given.pop() if given else await receive()

    return replay


async def _released(database: postgres.Database, key: str) -> None:
    try:
        async with database.transaction() as connection:
            await store.release(connection, key)
    except Failure:
        return  # the claim stays, and the next request with the key is told that the outcome is not known


async def _kept(database: postgres.Database, key: str, scope: Scope, answer: _Answer) -> None:
    content_type = next((value for name, value in answer.headers if name.lower() == b"content-type"), b"")
    kept: dict[str, Any] = {"type": content_type.decode("latin-1"), "text": _harmless(scope, bytes(answer.body))}
    if len(answer.body) > KEPT_LIMIT_BYTES:
        kept = {"is_omitted": True}
    try:
        async with database.transaction() as connection:
            await store.keep(connection, key, answer.status, kept)
    except Failure:
        return  # what was asked for is done; its client still hears so


def _harmless(scope: Scope, body: bytes) -> str:
    """Return an answer as it may be stored: a secret that is shown once is null."""
    name = SECRET_FIELDS.get((scope["method"], scope["path"]))
    if name is None:
        return body.decode()
    return json.dumps({**json.loads(body), name: None})


def _replayed(kept: store.Kept, digest: str) -> _Answer:
    """Return the answer that is kept.

    Raises:
        Failure: `request.idempotency_conflict`: another request's, of unknown end, or too large.
    """
    if not hmac.compare_digest(kept.request_sha256, digest):
        raise Failure(
            _CODE,
            "this Idempotency-Key was used for another request",
            hint="use a fresh key for each thing you ask for, and the same one only to repeat it unchanged",
            param="Idempotency-Key",
        )
    if kept.status == 0:
        raise Failure(
            _CODE,
            "how the first request with this Idempotency-Key ended is not known: the controller ended during it",
            hint="look whether it was done; if not, ask again with a fresh key",
            param="Idempotency-Key",
        )
    if kept.answer.get("is_omitted"):
        raise Failure(
            _CODE,
            f"this was done with status {kept.status}, but its answer was too large to keep",
            hint="read what you need with GET",
            param="Idempotency-Key",
        )
    body = str(kept.answer["text"]).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"idempotent-replayed", b"true")]
    if kept.answer["type"]:
        headers.append((b"content-type", str(kept.answer["type"]).encode("latin-1")))
    return _Answer(status=kept.status, headers=headers, body=bytearray(body))
