"""One request of a client, from its first byte to its last: what the door's parts know of it and note about it.

Made by the app; handed to the surface whose path was asked, and through it to the relay. When the request has ended,
however it did, the app gives it to whoever keeps the books. It decides nothing.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from core.errors import Failure
from core.infra.entropy import SystemEntropy
from gateway.table import KeyEntry, Route, Target

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
_KEY_PREFIX = "/k/"
# Version ff and all zeros are none: W3C Trace Context, 3.2.2.
_TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class ClientGone(Exception):
    """The client closed its connection."""


class ClientStalled(Exception):
    """The client left its answer unread for too long."""


@dataclass(slots=True)
class Tally:
    """What is counted of one request; each field is set by the part that learns it, at most a few times."""

    endpoint: str = ""
    """`adapters.contract.Endpoint`, or a surface's own word; "" while nothing that counts was asked."""
    model: str = ""
    """The public name that the client asked for."""
    is_stream: bool = False
    route: Route | None = None
    target: Target | None = None
    """The last replica that it was sent to."""
    attempts: int = 0
    status: int = 0
    """The status that the client got, 0 when it got none."""
    code: str = ""
    """The failure's code: of the refusal, or of the event that ended a stream."""
    first_byte_s: float | None = None
    """Seconds from the request's arrival to the first byte of the answer's body."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    is_whole: bool = False
    """Whether a stream's answer was passed on to its last event: clients leave when they have read that."""
    is_estimated: bool = False
    """Whether the engine did not say how many tokens there were."""


class Visit:
    """One request: its ASGI channel, when it came (a monotonic reading, seconds), and who calls once that is known.

    `path` is the path asked for, decoded, without the key that may stand before it: it may be logged and shown.
    """

    __slots__ = (
        "_has_begun",
        "_path_key",
        "_send",
        "_trace_id",
        "caller",
        "path",
        "receive",
        "request_id",
        "scope",
        "started_s",
        "tally",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, started_s: float) -> None:
        self.scope = scope
        self.receive = receive
        self.started_s = started_s
        self.path, self._path_key = split_key(scope["path"])
        self.caller: KeyEntry | None = None
        self.tally = Tally()
        self.request_id = (self.header(b"x-request-id") or b"").decode("latin-1")[:128]
        self._send = send
        self._trace_id = ""
        self._has_begun = False

    @property
    def has_begun(self) -> bool:
        """Whether an answer has begun: no other can be given any more."""
        return self._has_begun

    @property
    def authorization(self) -> bytes | None:
        """The Authorization header, or what it would be for the key in the path, which wins: it was meant for us."""
        return self.header(b"authorization") if self._path_key is None else b"Bearer " + self._path_key.encode()

    @property
    def trace_id(self) -> str:
        """The W3C trace that it belongs to, 32 hexadecimal digits: the client's, or else one of its own."""
        if not self._trace_id:
            found = _TRACE.fullmatch(self.header(b"traceparent") or b"")
            self._trace_id = found[1].decode() if found else SystemEntropy().token_bytes(16).hex()
        return self._trace_id

    @property
    def method(self) -> str:
        """The method, in upper case."""
        return str(self.scope["method"])

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of the lower-case `name`."""
        return next((value for key, value in self.scope["headers"] if key == name), None)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send a piece of the answer."""
        if not self._has_begun:
            self._has_begun = True
            self.tally.status = message.get("status", 0)
        await self._send(message)

    async def answer(self, answer: "Answer") -> None:
        """Send a whole answer."""
        head = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
        await self.send({"type": "http.response.start", "status": answer.status, "headers": head})
        await self.send({"type": "http.response.body", "body": answer.body})

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work` and cancel it when the client leaves: before, between and during the engine's bytes alike.

        Raises:
            Failure: of `work`.
            ClientStalled: of `work`.
            ClientGone: the client left.
        """
        failure: Failure | ClientStalled | ClientGone | None = None
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(_leave(self.receive))
                try:
                    await work
                except (Failure, ClientStalled) as error:
                    failure = error  # carried out of the group bare
                finally:
                    watcher.cancel()
        except* ClientGone:
            failure = ClientGone()
        if failure is not None:
            raise failure


def split_key(path: str) -> tuple[str, str | None]:
    """Return `path` without a leading `/k/KEY`, and KEY; None when there is none. For clients that send no headers."""
    if not path.startswith(_KEY_PREFIX):
        return path, None
    key, _, rest = path[len(_KEY_PREFIX) :].partition("/")
    return "/" + rest, key


async def _leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer; `headers` without the length, which is the body's."""

    status: int
    body: bytes
    headers: Headers


Handler = Callable[[Visit], Awaitable[None]]


class Surface(Protocol):
    """One API that clients speak at the door, such as OpenAI's: its paths, and its words for refusals."""

    def owns(self, path: str) -> bool:
        """Return whether `path` is this API's."""

    def handler(self, method: str, path: str) -> Handler:
        """Return what serves a request.

        Raises:
            Failure: `request.not_found`, `request.method_not_allowed`.
        """

    def refusal(self, visit: Visit, failure: Failure) -> Answer:
        """Return the answer that tells of `failure`."""
