"""A file server on loopback that knows ranges and validators, or misbehaves as it is told."""

import contextlib
import hashlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Thing:
    """What one path serves; every field may be changed while the server runs.

    `cut_after` bytes of a body the line is closed, `cuts` times; `drip` sends one byte and waits; `hold_after` bytes
    the site's `go_on` is waited for; `announce` is a length that is not true; `secret` is the token that is asked for.
    """

    data: bytes = b""
    etag: str | None = None
    knows_ranges: bool = True
    minds_if_range: bool = True
    is_chunked: bool = False
    cut_after: int = 0
    cuts: int = 0
    drip: bool = False
    hold_after: int = -1
    announce: int | None = None
    secret: str = ""
    error_code: str = ""
    status: int = 0
    location: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def validator(self) -> str:
        return f'"{hashlib.sha1(self.data).hexdigest()}"' if self.etag is None else self.etag


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    path: str
    range: str
    authorization: str
    host: str


class Site:
    """Paths and what was asked of them; `answer` is tried first and may make things up."""

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}
        self.seen: list[Seen] = []
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self.answer: Callable[[str, str], Thing | None] = lambda path, query: None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, path: str, data: bytes, **more: object) -> Thing:
        self.things[path] = Thing(data=data, **more)
        return self.things[path]

    def asked(self, path: str) -> list[Seen]:
        return [one for one in self.seen if one.path == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Site

    def do_GET(self) -> None:
        self.close_connection = True
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        said = self.headers
        self.state.seen.append(Seen(path, said.get("range", ""), said.get("authorization", ""), said.get("host", "")))
        thing = self.state.answer(path, parts.query) or self.state.things.get(path)
        with contextlib.suppress(OSError):
            self._serve(thing or Thing(status=404))

    def _serve(self, thing: Thing) -> None:
        if thing.secret and self.headers.get("authorization") != f"Bearer {thing.secret}":
            self._head(401, 0, {"x-error-code": thing.error_code or "GatedRepo"})
        elif thing.location:
            self._head(302, 0, {"location": thing.location, **thing.headers})
        elif thing.status:
            self._head(thing.status, len(thing.data), thing.headers)
            self.wfile.write(thing.data)
        else:
            self._file(thing)

    def _file(self, thing: Thing) -> None:
        start, end, status = 0, len(thing.data), 200
        asked = re.match(r"bytes=(\d+)-(\d+)\Z", self.headers.get("range", ""))
        guard = self.headers.get("if-range")
        if asked and thing.knows_ranges and (guard in (None, thing.validator) or not thing.minds_if_range):
            start, end, status = int(asked[1]), min(int(asked[2]) + 1, len(thing.data)), 206
            if start >= len(thing.data):
                return self._head(416, 0, {"content-range": f"bytes */{len(thing.data)}"})
        headers = dict(thing.headers)
        if thing.validator:
            headers["etag"] = thing.validator
        if status == 206:
            headers["content-range"] = f"bytes {start}-{end - 1}/{len(thing.data)}"
        length = end - start if thing.announce is None else thing.announce
        self._head(status, None if thing.is_chunked else length, headers)
        self._body(thing, thing.data[start:end])
        return None

    def _head(self, status: int, length: int | None, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("connection", "close")
        if length is None:
            self.send_header("transfer-encoding", "chunked")
        else:
            self.send_header("content-length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, thing: Thing, data: bytes) -> None:
        if thing.cuts and thing.cut_after < len(data):
            thing.cuts -= 1
            data, is_cut = data[: thing.cut_after], True
        else:
            is_cut = False
        if thing.hold_after >= 0:
            self._send(thing, data[: thing.hold_after])
            self.wfile.flush()
            self.state.go_on.wait(20)
            data = data[thing.hold_after :]
        if thing.drip:
            for at in range(len(data)):
                self._send(thing, data[at : at + 1])
                self.wfile.flush()
                if self.state.ended.wait(0.02):
                    return
        else:
            self._send(thing, data)
        if thing.is_chunked and not is_cut:
            self.wfile.write(b"0\r\n\r\n")

    def _send(self, thing: Thing, data: bytes) -> None:
        if thing.is_chunked and data:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        else:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        return


@contextlib.contextmanager
def site(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve a `Site` until the block ends."""
    state = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = False
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        state.go_on.set()
        state.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
