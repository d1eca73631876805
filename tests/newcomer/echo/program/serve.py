"""Serves OpenAI's chats with an echo: `serve.py FILE`, whose JSON holds address, key, name and settings.

Uses the standard library only.
"""

import itertools
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Refused(Exception):
    """A request that makes no sense, or does not fit."""

    def __init__(self, text: str, kind: str = "invalid") -> None:
        super().__init__(text)
        self.body = {"error": {"message": text, "type": kind}}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, wanted: dict) -> None:
        self.wanted = wanted
        self.warm_at = time.monotonic() + wanted["warm_up_s"]
        self.counts = {"echo_characters_total": 0, "echo_running": 0}
        self.lock = threading.Lock()
        super().__init__((wanted["host"], wanted["port"]), Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.server_address

    def count(self, name: str, step: int) -> None:
        with self.lock:
            self.counts[name] += step


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing of single requests."""

    def answer(self, status: int, body: object, kind: str = "application/json") -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def is_stranger(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {self.server.wanted['api_key']}":
            return False
        self.answer(401, {"error": {"message": "who are you?", "type": "auth"}})
        return True

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200 if time.monotonic() >= self.server.warm_at else 503, {})
        elif self.is_stranger():
            return
        elif self.path == "/metrics":
            self.answer(200, "".join(f"{name} {value}\n" for name, value in self.server.counts.items()), "text/plain")
        elif self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": self.server.wanted["name"], "object": "model"}]})
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.is_stranger():
            return
        try:
            asked = checked(body)
            text = text_of(asked["messages"])
            room = self.server.wanted["context"] - len(text)
            if room <= 0:
                raise Refused("more than I can keep in mind", "too_long")
        except Refused as refusal:
            self.answer(400, refusal.body)
            return
        self.server.count("echo_running", 1)
        try:
            self.tell(asked, text, min(asked.get("max_tokens") or 64, room))
        except ConnectionError:
            self.close_connection = True
        finally:
            self.server.count("echo_running", -1)

    def tell(self, asked: dict, text: str, limit: int) -> None:
        """Send the answer as a stream, or whole; a client that left ends it at the next character."""
        is_stream = bool(asked.get("stream"))
        if is_stream:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
        told, reason, made, sent = "", "length", 0, 0
        stops = asked.get("stop") or []
        for letter in itertools.islice(itertools.cycle(text.strip() + " "), limit):
            threading.Event().wait(self.server.wanted["delay_ms"] / 1000)
            made += 1
            told += letter
            ends = [told.index(stop) for stop in stops if stop in told]
            if ends:
                told, reason = told[: min(ends)], "stop"
                break
            certain = len(told) - max(map(len, stops), default=1) + 1
            if is_stream and certain > sent:
                self.event([choice(told[sent:certain])])
                sent = certain
        self.server.count("echo_characters_total", made)
        usage = {"prompt_tokens": len(text), "completion_tokens": made, "total_tokens": len(text) + made}
        if not is_stream:
            end = {"index": 0, "message": {"role": "assistant", "content": told}, "finish_reason": reason}
            self.answer(200, {**self.head("chat.completion"), "choices": [end], "usage": usage})
            return
        self.event([choice(told[sent:], reason)])
        if (asked.get("stream_options") or {}).get("include_usage"):
            self.event([], usage=usage)
        self.piece("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def head(self, kind: str) -> dict:
        return {"id": "echo", "object": kind, "created": int(time.time()), "model": self.server.wanted["name"]}

    def event(self, choices: list, **more: object) -> None:
        chunk = {**self.head("chat.completion.chunk"), "choices": choices, **more}
        self.piece(f"data: {json.dumps(chunk)}\n\n")

    def piece(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def choice(text: str, reason: str | None = None) -> dict:
    return {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}


def checked(body: bytes) -> dict:
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise Refused("no JSON") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise Refused("'messages' must be a list")
    stops = asked.get("stop") or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise Refused("'stop' must be texts")
    return asked


def text_of(messages: list) -> str:
    """Return every message's text, in order."""
    texts = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else None
            if not isinstance(text, str):
                raise Refused("a message must be a text")
            texts.append(text)
    return "\n".join(texts)


def main() -> None:
    wanted = json.loads(Path(sys.argv[1]).read_text())
    try:
        server = Server(wanted)
    except OSError as error:
        print(f"echo: {wanted['host']}:{wanted['port']}: {error}", file=sys.stderr)
        sys.exit(4)
    server.serve_forever()


if __name__ == "__main__":
    main()
