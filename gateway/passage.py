"""What the relay writes, on its way to a client of another API than the engines': an ASGI `send` that translates.

Comes in: the messages of an answer in OpenAI's words. Goes out: those of the client's API. Called by the relay, made by
a surface, once a request. Nothing is sent of a whole answer before it is translated, so that one that is none becomes a
clean refusal.
"""

from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

from core.errors import Failure
from gateway.visit import Headers, Visit

_KEPT = frozenset({b"x-slice-replica", b"cache-control", b"x-accel-buffering"})
JSON: tuple[bytes, bytes] = (b"content-type", b"application/json; charset=utf-8")
NDJSON: tuple[bytes, bytes] = (b"content-type", b"application/x-ndjson")


EVENTS: tuple[bytes, bytes] = (b"content-type", b"text/event-stream; charset=utf-8")


class Translation(Protocol):
    """An answer that is translated while it comes; `failure` is one that came from the translation itself."""

    failure: Failure | None

    def feed(self, data: bytes) -> bytes:
        """Return what `data`, cut anywhere, adds to the client's stream."""

    def finish(self) -> bytes:
        """Return the stream's end."""


class Passage:
    """One answer; `stream` translates it piece by piece for a client that wants it so, `whole` at once.

    `kind` is the content type of a stream. A client that wants one gets what `whole` returns as all of it when the
    engine did not stream. `headers` are added to the answer's.
    """

    def __init__(
        self,
        visit: Visit,
        *,
        stream: Translation | None,
        whole: Callable[[bytes], bytes],
        headers: Headers,
        kind: tuple[bytes, bytes],
    ) -> None:
        self._visit = visit
        self._stream = stream
        self._whole = whole
        self._headers = headers
        self._kind = kind
        self._pieces: list[bytes] = []
        self._is_events = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Take the next message of the answer.

        Raises:
            Failure: `door.engine_failed`: a whole answer is none; nothing was sent.
        """
        if message["type"] == "http.response.start":
            await self._begin(message["headers"])
        elif self._is_events and self._stream is not None:
            await self._pass(self._stream, message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            self._pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                await self._end()

    async def _begin(self, given: Headers) -> None:
        self._headers = [*((name, value) for name, value in given if name in _KEPT), *self._headers]
        kind = next((value for name, value in given if name == b"content-type"), b"")
        self._is_events = self._stream is not None and kind.startswith(b"text/event-stream")
        if self._is_events:
            await self._start([self._kind])

    async def _start(self, more: Headers) -> None:
        await self._visit.send({"type": "http.response.start", "status": 200, "headers": [*more, *self._headers]})

    async def _pass(self, stream: Translation, data: bytes, *, is_last: bool) -> None:
        lines = stream.feed(data)
        if is_last:
            lines += stream.finish()
        if stream.failure is not None:
            self._visit.tally.code = stream.failure.code
        if lines or is_last:
            await self._visit.send({"type": "http.response.body", "body": lines, "more_body": not is_last})

    async def _end(self) -> None:
        body = self._whole(b"".join(self._pieces))
        kind = JSON if self._stream is None else self._kind
        await self._start([kind, (b"content-length", str(len(body)).encode())])
        await self._visit.send({"type": "http.response.body", "body": body})
