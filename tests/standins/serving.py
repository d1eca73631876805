"""The HTTP server under both stand-ins: JSON in, JSON or a chunked stream out, one thread a request.

Comes in: requests. Goes out: what `Handler.routes` answers. A route returns nothing and answers through the handler.
"""

import json
import socket
import socketserver
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.standins.llama import ClientGone

Route = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One connection; subclasses set `routes` and may answer strangers and unknown paths their own way."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    routes: Mapping[tuple[str, str], Route] = {}

    def log_message(self, *_: object) -> None:
        """Say nothing; the engines' own access logs are no interface."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ClientGone, ConnectionError):
            self.close_connection = True

    def _dispatch(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.body = b"" if self.is_streamed_upload() else self.rfile.read(length)
        self.is_started = False
        route, self.argument = self._route()
        if route is None:
            self.unknown()
        else:
            route(self)

    do_GET = do_POST = do_HEAD = do_DELETE = _dispatch

    def _route(self) -> tuple[Route | None, str]:
        path = self.path.split("?")[0]
        if (self.command, path) in self.routes:
            return self.routes[self.command, path], ""
        stem, _, last = path.rpartition("/")
        return self.routes.get((self.command, stem + "/*")), last

    def is_streamed_upload(self) -> bool:
        """Whether the body is read by the route itself, because it may be large."""
        return False

    def unknown(self) -> None:
        """Answer a path that does not exist."""
        self.text(404, "404 page not found")

    @property
    def client(self) -> socket.socket:
        return self.connection

    def whole(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        self.is_started = True
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def text(self, status: int, text: str) -> None:
        self.whole(status, text.encode(), "text/plain; charset=utf-8")

    def json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        self.whole(status, json.dumps(value).encode(), "application/json; charset=utf-8", headers)

    def begin(self, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        self.is_started = True
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")


class Server(ThreadingHTTPServer):
    """Loopback only, whatever the name resolves to; no reverse lookups."""

    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]
