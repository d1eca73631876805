"""One GET in a thread: bounded redirects, credentials for one origin alone, every wait bounded.

Comes in: a URL. Goes out: an `Answer` whose body is read chunk by chunk, so that the disk's pace holds the sender back.
Called by `node_agent.files.download` and `node_agent.files.ollama`. Plain `http.client`: the node agent's interpreter
stays small. Where connections lead is decided by its `Lines`: the public network's (`node_agent.files.lines`), or those
to other nodes (`node_agent.files.peers`).
"""

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urljoin, urlsplit

from core.errors import Failure
from node_agent.files.halt import Halt, cut
from node_agent.files.reach import Origin, origin_of
from node_agent.files.store import Cancelled

CHUNK_BYTES = 256 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_PAUSE_S = 60.0
_USER_AGENT = "slice-node-agent"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How long one exchange may take; seconds and bytes.

    `answer_s` bounds a whole head, `silence_s` one wait for bytes of the body, and fewer than `slow_bytes` in `slow_s`
    are taken for a line that hangs. `attempts` fruitless tries in a row end a download. A large file comes in pieces of
    `piece_bytes`, after one of `first_bytes` that tells whether the server knows ranges.
    """

    connect_s: float = 10.0
    answer_s: float = 30.0
    silence_s: float = 30.0
    slow_bytes: int = 64 * 1024
    slow_s: float = 60.0
    redirects: int = 5
    attempts: int = 6
    first_pause_s: float = 0.5
    first_bytes: int = 1024**2
    piece_bytes: int = 32 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Token:
    """A secret and the one origin that may see it."""

    origin: Origin
    secret: str


class Interrupted(Exception):
    """The exchange broke off in a way that another try may mend; `failure` is what to say if that was the last."""

    def __init__(self, failure: Failure, pause_s: float = 0.0) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.pause_s = min(pause_s, _MAX_PAUSE_S)


class Answer:
    """The head of an answer of status 200, 206 or 416, and its body."""

    def __init__(
        self, response: http.client.HTTPResponse, host: str, bounds: Bounds, halt: Halt, monotonic: Callable[[], float]
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._host = host
        self._bounds = bounds
        self._halt = halt
        self._monotonic = monotonic

    @property
    def length(self) -> int | None:
        """Bytes of this body as announced, or None; chunks say for themselves how many they are (RFC 9112, 6.3)."""
        if self._is_chunked:
            return None
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else None

    @property
    def tells_its_end(self) -> bool:
        """Whether a body that is cut off can be told from one that is whole."""
        return self.length is not None or self._is_chunked

    @property
    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes; ends early when the line is cut and the head announced a length.

        Raises:
            Interrupted: the line broke, is silent, or drips.
            Cancelled: the halt was set.
        """
        since, heard = self._monotonic(), 0
        with _told(self._host, self._halt):
            while chunk := self._response.read1(CHUNK_BYTES):
                if self._halt.is_set():
                    raise Cancelled
                yield chunk
                heard += len(chunk)
                if (now := self._monotonic()) - since >= self._bounds.slow_s:
                    if heard < self._bounds.slow_bytes:
                        raise Interrupted(unreachable(f"{self._host} sends too slowly"))
                    since, heard = now, 0
        if self._halt.is_set():
            raise Cancelled


class Lines(Protocol):
    """Makes connections, to what may be connected to."""

    def line(self, origin: Origin, halt: Halt, stack: contextlib.ExitStack) -> socket.socket:
        """Return a connection to `origin` that was lent to `halt`; `stack` closes it. Blocks.

        Raises:
            Failure: `source.not_allowed`, `source.unreachable`.
            Interrupted, OSError: another try may work.
            Cancelled: the halt was set.
        """


class HttpGet:
    """Makes requests over `lines`."""

    def __init__(self, *, lines: Lines, bounds: Bounds, monotonic: Callable[[], float]) -> None:
        self.bounds = bounds
        self._lines = lines
        self._monotonic = monotonic

    @contextlib.contextmanager
    def open(self, url: str, headers: Mapping[str, str], halt: Halt, token: Token | None = None) -> Iterator[Answer]:
        """Follow redirects to an answer. Blocks, in a thread. The token is dropped at the first step to another origin.

        Raises:
            Failure: `source.not_allowed`, `source.not_found`, `source.needs_token`, `source.unreachable`.
            Interrupted: another try may work.
            Cancelled: the halt was set.
        """
        start = origin_of(url)
        for _ in range(self.bounds.redirects + 1):
            origin = origin_of(url)
            if token is not None and token.origin != origin:
                token = None
            said = {**headers, **({"authorization": f"Bearer {token.secret}"} if token else {})}
            with self._asked(origin, url, said, halt) as response:
                if response.status not in _REDIRECTS:
                    _require_good(response, origin, is_start=origin == start)
                    yield Answer(response, origin.host, self.bounds, halt, self._monotonic)
                    return
                url = urljoin(url, response.headers.get("location", ""))
        raise unreachable(f"{start.host} redirects more than {self.bounds.redirects} times")

    @contextlib.contextmanager
    def _asked(
        self, origin: Origin, url: str, headers: Mapping[str, str], halt: Halt
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        with contextlib.ExitStack() as stack:
            connection = http.client.HTTPConnection(origin.host, origin.port)
            connection.default_port = 443 if origin.scheme == "https" else 80
            stack.callback(connection.close)
            with _told(origin.host, halt):
                line = self._lines.line(origin, halt, stack)
                connection.sock = line
                with deadline(line, self.bounds.answer_s):
                    connection.request("GET", target, headers={"user-agent": _USER_AGENT, **_IDENTITY, **headers})
                    response = connection.getresponse()
            stack.callback(response.close)
            line.settimeout(self.bounds.silence_s)
            yield response


_IDENTITY = {"accept-encoding": "identity"}  # sizes, ranges and digests are those of the file itself


def _require_good(response: http.client.HTTPResponse, origin: Origin, *, is_start: bool) -> None:
    status, host = response.status, origin.host
    if status in (200, 206, 416):
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise Failure("source.invalid", f"{host} sends the file packed, though it was asked not to")
        return
    if status in (404, 410):
        raise Failure("source.not_found", f"{host} has no such file", hint="check the source's name")
    if status in (401, 403) and is_start:
        raise Failure(
            "source.needs_token",
            f"{host} does not give this file without credentials",
            hint="accept the model's terms there and name a file (mode 0600) with a token in hf_token_file",
        )
    failure = unreachable(f"{host} answers with status {status}")
    # What a redirect leads to was signed for a short time: the next try is sent to a fresh address.
    if status in _LATER or status in (401, 403):
        pause = response.headers.get("retry-after", "")
        raise Interrupted(failure, float(pause) if pause.isascii() and pause.isdigit() else 0.0)
    raise failure


@contextlib.contextmanager
def deadline(line: socket.socket, seconds: float) -> Iterator[None]:
    """Cut the line when the block takes longer: a timeout of the socket starts anew with every byte that drips in."""
    timer = threading.Timer(seconds, cut, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _told(host: str, halt: Halt) -> Iterator[None]:
    """Turn what the network and `http.client` raise into what the callers of this module expect."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise Failure(
            "source.unreachable",
            f"the certificate of {host} is not trusted: {error.verify_message}",
            hint="for a private certificate authority set SSL_CERT_FILE",
        ) from None
    except (OSError, http.client.HTTPException, ValueError):
        if halt.is_set():
            raise Cancelled from None
        raise Interrupted(unreachable(f"the connection to {host} broke off or went silent")) from None


def unreachable(what: str) -> Failure:
    """Return the failure of a place that cannot be reached now."""
    return Failure("source.unreachable", what, hint="check the network, then pull again: it goes on where it was")
