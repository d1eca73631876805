"""The admin API (docs/admin-api.md) over the standard library's HTTP client.

Paths and JSON bodies go in; JSON objects, NDJSON records or text come out, and every refusal becomes a `Failure` with
the server's own code. One connection per call: the CLI makes few of them. Called by commands; it prints nothing.
"""

import codecs
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from core.errors import CODES, Failure

Json = dict[str, Any]

CONNECT_TIMEOUT_S = 5.0
"""A listening controller accepts at once; a firewalled host would keep us for two minutes."""
ANSWER_TIMEOUT_S = 60.0
"""For writes: the slowest call is a forced delete, which waits for nothing but the database."""
READ_TIMEOUT_S = 15.0
"""For reads: answered in well under a second; past that the controller hangs, and a person should learn so."""
_KEEPALIVE_S = 20  # a follower of a peer that vanished without a word learns it within about 80 s
_LARGEST_ERROR_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class Address:
    """A server to call: base URL and the failure to raise when nobody answers there."""

    url: str
    who: str  # "controller" or "front door": the subject of the sentence
    code: str  # controller.unreachable or door.engine_unreachable
    hint: str

    def unreachable(self, reason: str) -> Failure:
        """Return the failure for a server that does not answer, for `reason`."""
        return Failure(self.code, f"the {self.who} at {self.url} {reason}", hint=self.hint)

    def broken(self, reason: str) -> Failure:
        """Return the failure for a server that had begun to answer."""
        return Failure(
            self.code,
            f"the {self.who} at {self.url} {reason}",
            hint="try again; `slice doctor` and `slice ps` say what is wrong",
        )


def opened(
    address: Address,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    answer_timeout_s: float | None = ANSWER_TIMEOUT_S,
) -> http.client.HTTPResponse:
    """Send one request and return its response, whose body is unread; the caller closes it.

    `answer_timeout_s` bounds each read; None waits for ever (a followed stream), then TCP keep-alive watches the peer.

    Raises:
        Failure: nobody answered.
    """
    parts = urlsplit(address.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    line = kind(parts.hostname or "", parts.port, timeout=CONNECT_TIMEOUT_S)
    try:
        line.connect()
        line.sock.settimeout(answer_timeout_s)
        if answer_timeout_s is None:
            _watch_peer(line.sock)
        line.request(method, parts.path.rstrip("/") + path, body=body, headers={**headers, "Connection": "close"})
        response = line.getresponse()
        if line.sock is not None:
            line.sock.close()  # ours; the response reads on through its own handle and closes that
        return response
    except (OSError, http.client.HTTPException) as error:
        line.close()
        if isinstance(error, ConnectionRefusedError):
            raise address.unreachable("does not answer") from error
        if isinstance(error, TimeoutError):
            raise address.unreachable("did not answer in time") from error
        raise address.unreachable(f"cannot be reached ({_reason(error)})") from error


def patience(method: str, *, is_followed: bool) -> float | None:
    """Return how long the admin API may take between two bytes, in seconds; None for as long as it lives."""
    if is_followed:
        return None
    return READ_TIMEOUT_S if method == "GET" else ANSWER_TIMEOUT_S


def _watch_peer(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), _KEEPALIVE_S)


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else ""
    return text or type(error).__name__


def chunks(response: http.client.HTTPResponse, address: Address) -> Iterator[bytes]:
    """Yield the body as it arrives.

    Raises:
        Failure: the connection broke before the body's end.
    """
    try:
        while block := response.read1(65536):
            yield block
    except TimeoutError as error:
        raise address.broken("fell silent") from error
    except (OSError, http.client.HTTPException) as error:
        raise address.broken("broke off its answer") from error


def lines(blocks: Iterator[bytes]) -> Iterator[str]:
    """Yield the text lines of a byte stream without their ends; the last one may lack its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    for block in blocks:
        *whole, rest = (rest + decoder.decode(block)).split("\n")
        for line in whole:
            yield line.removesuffix("\r")
    if rest:
        yield rest


class AdminClient:
    """One cluster's admin API under an operator token."""

    def __init__(self, address: Address, token: str) -> None:
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    def get(self, *segments: str, **query: object) -> Json:
        """Return the object at `/api/v1/<segments>`."""
        return self._call("GET", segments, query, None)

    def items(self, *segments: str, **query: object) -> list[Json]:
        """Return the items of the list at `/api/v1/<segments>`."""
        return list(self.get(*segments, **query).get("items", []))

    def post(self, *segments: str, body: Mapping[str, object]) -> Json:
        """Create a thing and return it."""
        return self._call("POST", segments, {}, body)

    def post_text(self, *segments: str, text: str, media_type: str, **query: object) -> Json:
        """Send a text and return the object that comes back."""
        return self._call("POST", segments, query, text.encode(), media_type)

    def put(self, *segments: str, body: Mapping[str, object]) -> Json:
        """Set a thing and return it."""
        return self._call("PUT", segments, {}, body)

    def patch(self, *segments: str, body: Mapping[str, object]) -> Json:
        """Change a thing and return it."""
        return self._call("PATCH", segments, {}, body)

    def delete(self, *segments: str, **query: object) -> Json:
        """Delete a thing and return what is left of it (an empty object for 204)."""
        return self._call("DELETE", segments, query, None)

    def records(self, *segments: str, **query: object) -> Iterator[Json]:
        """Yield the objects of an NDJSON stream, for ever when the server follows.

        Raises:
            Failure: the server refused, or broke off.
        """
        response = self._open("GET", segments, query, None, is_followed=True)
        with response:
            for line in lines(chunks(response, self._address)):
                if line.strip():
                    yield _object(line.encode(), self._address)

    def text(self, *segments: str, is_followed: bool, **query: object) -> Iterator[str]:
        """Yield pieces of a text as they arrive.

        Raises:
            Failure: the server refused, or broke off.
        """
        response = self._open("GET", segments, query, None, is_followed=is_followed)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with response:
            for block in chunks(response, self._address):
                yield decoder.decode(block)

    def _call(
        self,
        method: str,
        segments: tuple[str, ...],
        query: Mapping[str, object],
        body: Mapping[str, object] | bytes | None,
        media_type: str = "application/json",
    ) -> Json:
        with self._open(method, segments, query, body, media_type, is_followed=False) as response:
            text = b"".join(chunks(response, self._address))
        return _object(text, self._address) if text.strip() else {}

    def _open(
        self,
        method: str,
        segments: tuple[str, ...],
        query: Mapping[str, object],
        body: Mapping[str, object] | bytes | None,
        media_type: str = "application/json",
        *,
        is_followed: bool,
    ) -> http.client.HTTPResponse:
        path = "/api/v1/" + "/".join(quote(segment, safe="") for segment in segments)
        given = {key: _query_text(value) for key, value in query.items() if value is not None}
        headers = dict(self._headers)
        payload = None
        if body is not None:
            payload = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers["Content-Type"] = media_type
        response = opened(
            self._address,
            method,
            f"{path}?{urlencode(given)}" if given else path,
            headers=headers,
            body=payload,
            answer_timeout_s=patience(method, is_followed=is_followed),
        )
        if response.status >= 400:
            with response:
                raise refusal(response, self._address)
        return response


def _query_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _object(text: bytes, address: Address) -> Json:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Failure(
            "internal.unexpected",
            f"the {address.who} at {address.url} sent something that is no JSON object",
            hint="check that the URL is a Slice controller of this release (`slice version`)",
        )
    return found


def refusal(response: http.client.HTTPResponse, address: Address) -> Failure:
    """Return the failure that an answer with a status of 400 or more means; at most 64 KiB of it are read."""
    try:
        text = response.read(_LARGEST_ERROR_BYTES)
        found = json.loads(text)
    except (OSError, http.client.HTTPException, ValueError):
        found = None
    error = found.get("error") if isinstance(found, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return failure_of(error, retry_after_s=_seconds(response.getheader("Retry-After")))
    if response.status in {502, 503, 504}:
        return address.unreachable(f"is not ready (HTTP {response.status})")
    return Failure(
        "internal.unexpected",
        f"the {address.who} at {address.url} answered HTTP {response.status} without a reason",
        hint="check that the URL is a Slice controller of this release (`slice version`)",
    )


def failure_of(error: Mapping[str, Any], *, retry_after_s: float | None = None) -> Failure:
    """Return the `Failure` of an error object; a code that this release does not know becomes internal.unexpected."""
    code = str(error.get("code") or "internal.unexpected")
    message = str(error.get("message") or "no reason was given")
    if code not in CODES:
        code, message = "internal.unexpected", f"{message} ({code})"
    param = error.get("param")
    return Failure(
        code,
        message,
        hint=str(error.get("hint") or ""),
        param=str(param) if param is not None else None,
        retry_after_s=retry_after_s,
    )


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
