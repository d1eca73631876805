"""A real HTTP/1.1 server that speaks OpenAI's API, answers with its prompt's words, and misbehaves when told to.

Run by path: `python -I -S serve.py FILE`, where FILE is the JSON that `adapters.fake.adapter` writes. Standard library
only. The same request always gets the same answer.
"""

import base64
import ctypes
import hashlib
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_MAX_BODY_BYTES = 64 * 1024**2
_DIMENSIONS = 8
_CHILD_LIFE_S = 600  # a forgotten child of a drill ends by itself
_PR_SET_NAME = 15  # prctl(2)


class Refused(Exception):
    """A request that gets an error in OpenAI's envelope."""

    def __init__(self, status: int, kind: str, message: str, **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"code": status, "message": message, "type": kind, **more}


class Counters:
    """What /metrics shows; every change holds the lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values = {
            "fake:prompt_tokens_total": 0,
            "fake:tokens_predicted_total": 0,
            "fake:requests_processing": 0,
            "fake:requests_deferred": 0,
        }

    def add(self, name: str, count: int) -> None:
        with self._lock:
            self._values[f"fake:{name}"] += count

    def page(self) -> str:
        with self._lock:
            values = dict(self._values)
        lines = []
        for name, value in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} Of the fake engine.", f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"


def words_of(value: object) -> list[str]:
    """Return the words of a message's content, a prompt or an input: a text, a list of texts or of content parts."""
    if isinstance(value, str):
        return value.split()
    if isinstance(value, dict):
        return words_of(value.get("text", value.get("content", "")))
    if isinstance(value, list):
        if value and all(isinstance(one, int) for one in value):
            return [str(one) for one in value]
        return [word for one in value for word in words_of(one)]
    return []


def stops_of(value: object) -> list[str]:
    """Return the stop strings of a request: none, one, or up to four."""
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise Refused(400, "invalid_request_error", "stop must be a string or a list of strings")
    return [one for one in stops if one]


def vector_of(value: object) -> list[float]:
    """Return a unit vector that depends on the words only."""
    digest = hashlib.sha256(" ".join(words_of(value)).encode()).digest()
    raw = [number / 2**31 - 1.0 for number in struct.unpack(f"<{_DIMENSIONS}I", digest)]
    length = sum(one * one for one in raw) ** 0.5 or 1.0
    return [one / length for one in raw]


class Answer:
    """One answer in the making: which tokens, why it ends, and where it goes wrong."""

    def __init__(self, wanted: dict, body: dict) -> None:
        source = body.get("messages", body.get("prompt", ""))
        prompt = words_of(source)
        self.prompt_tokens = max(1, len(prompt))
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise Refused(400, "invalid_request_error", "max_tokens must be a whole number above 0")
        room = wanted["context"] - self.prompt_tokens
        if room < 1:
            raise Refused(
                400,
                "exceed_context_size_error",
                f"request ({self.prompt_tokens} tokens) exceeds the context size ({wanted['context']} tokens)",
                n_prompt_tokens=self.prompt_tokens,
                n_ctx=wanted["context"],
            )
        self.count = min(limit or wanted["tokens"], room)
        self.finish_reason = "length" if self.count in (limit, room) else "stop"
        last = words_of(source[-1]) if isinstance(source, list) and source else prompt
        words = last or ["nothing"]
        self._texts = [("" if number == 0 else " ") + words[number % len(words)] for number in range(self.count)]
        self._wanted = wanted
        self._cut_at(stops_of(body.get("stop")))

    def _cut_at(self, stops: list[str]) -> None:
        """End the answer before the first stop string in it, in the middle of a token if need be."""
        text = "".join(self._texts)
        found = [place for stop in stops if (place := text.find(stop)) >= 0]
        if not found:
            return
        kept, room = [], min(found)
        for one in self._texts:
            kept.append(one[:room])
            room -= len(kept[-1])
            if room == 0:
                break
        self._texts, self.count, self.finish_reason = kept, len(kept), "stop"

    def tokens(self):
        """Yield the tokens, misbehaving where the settings say."""
        for number in range(1, self.count + 1):
            if self._wanted["token_delay_ms"]:
                time.sleep(self._wanted["token_delay_ms"] / 1000)
            if number == self._wanted["die_at_token"]:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == self._wanted["hang_at_token"]:
                threading.Event().wait()
            yield self._texts[number - 1]

    def usage(self) -> dict:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.count,
            "total_tokens": self.prompt_tokens + self.count,
        }


class Handler(BaseHTTPRequestHandler):
    """One connection; the class attributes are set once by `main`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 600
    wanted: dict
    counters: Counters
    ready_at: float

    def log_message(self, *_: object) -> None:
        """Say nothing: prompts do not belong in logs."""

    def do_GET(self) -> None:
        if self.path == "/health":
            if time.monotonic() < self.ready_at:
                self._json(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
            else:
                self._json(200, {"status": "ok"})
            return
        if not self._is_allowed():
            return
        if self.path == "/metrics":
            self._send(200, "text/plain; version=0.0.4", self.counters.page().encode())
        elif self.path == "/v1/models":
            model = {"id": self.wanted["served_name"], "object": "model", "created": 0, "owned_by": "fake"}
            self._json(200, {"object": "list", "data": [model]})
        else:
            self._json(404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}})

    def do_POST(self) -> None:
        body = self._body()
        if body is None or not self._is_allowed():
            return
        routes = {
            "/v1/chat/completions": self._generate,
            "/v1/completions": self._generate,
            "/v1/embeddings": self._embed,
        }
        self.counters.add("requests_processing", 1)
        try:
            if self.path not in routes:
                raise Refused(404, "not_found_error", "File Not Found")
            if self.wanted["http_status"]:
                raise Refused(self.wanted["http_status"], "server_error", "the fake engine was told to fail")
            routes[self.path](self._parsed(body))
        except Refused as refused:
            self._json(refused.status, {"error": refused.error})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client went away, as clients do
        finally:
            self.counters.add("requests_processing", -1)

    def _parsed(self, body: bytes) -> dict:
        try:
            found = json.loads(body)
        except ValueError:
            raise Refused(400, "invalid_request_error", "the body is not JSON") from None
        if not isinstance(found, dict):
            raise Refused(400, "invalid_request_error", "the body is not a JSON object")
        return found

    def _body(self) -> bytes | None:
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            self._json(
                411 if not length else 413, {"error": {"message": "no usable length", "type": "invalid_request_error"}}
            )
            return None
        return self.rfile.read(int(length))

    def _is_allowed(self) -> bool:
        key = self.wanted["api_key"]
        if not key or self.headers.get("authorization", "") == f"Bearer {key}":
            return True
        self._json(401, {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}})
        return False

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _json(self, status: int, value: object) -> None:
        self._send(status, "application/json; charset=utf-8", json.dumps(value).encode())

    def _generate(self, body: dict) -> None:
        answer = Answer(self.wanted, body)
        self.counters.add("prompt_tokens_total", answer.prompt_tokens)
        is_chat = self.path.endswith("/chat/completions")
        identity = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24]
        base = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{identity}",
            "created": int(time.time()),
            "model": self.wanted["served_name"],
        }
        if body.get("stream"):
            self._stream(answer, base, body, is_chat=is_chat)
            return
        text = ""
        for token in answer.tokens():
            self._require_client()
            text += token
        self.counters.add("tokens_predicted_total", answer.count)
        choice = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text, "logprobs": None}
        base["object"] = "chat.completion" if is_chat else "text_completion"
        base["choices"] = [{"index": 0, **choice, "finish_reason": answer.finish_reason}]
        self._json(200, {**base, "usage": answer.usage()})

    def _require_client(self) -> None:
        """Stop working for a client that has left."""
        if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise BrokenPipeError

    def _stream(self, answer: Answer, base: dict, body: dict, *, is_chat: bool) -> None:
        base["object"] = "chat.completion.chunk" if is_chat else "text_completion"

        def event(part: dict, finish: str | None = None) -> None:
            self._event({**base, "choices": [{"index": 0, **part, "finish_reason": finish}]})

        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if is_chat:
            event({"delta": {"role": "assistant", "content": None}})
        middle = answer.count // 2 + 1
        for number, token in enumerate(answer.tokens(), start=1):
            if number == middle and self.wanted["truncate_stream"]:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if number == middle and self.wanted["malformed_stream"]:
                self._chunk(b'data: {"id": "broken", "choices": [{\n\n')
            event({"delta": {"content": token}} if is_chat else {"text": token})
            self.counters.add("tokens_predicted_total", 1)
        event({"delta": {}} if is_chat else {"text": ""}, answer.finish_reason)
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event({**base, "choices": [], "usage": answer.usage()})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, value: dict) -> None:
        self._chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _embed(self, body: dict) -> None:
        given = body.get("input", "")
        inputs = given if isinstance(given, list) and not all(isinstance(one, int) for one in given) else [given]
        tokens = [max(1, len(words_of(one))) for one in inputs]
        if max(tokens, default=1) > self.wanted["context"]:
            raise Refused(400, "exceed_context_size_error", "an input exceeds the available context size")
        data = []
        for index, one in enumerate(inputs):
            vector: object = vector_of(one)
            if body.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack(f"<{_DIMENSIONS}f", *vector_of(one))).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        self.counters.add("prompt_tokens_total", sum(tokens))
        usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
        self._json(200, {"object": "list", "model": self.wanted["served_name"], "data": data, "usage": usage})


class Server(ThreadingHTTPServer):
    """Threads that never keep the process alive, and room for many who connect at once."""

    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that go away; a fault of our own is one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"fake: {error!r}", file=sys.stderr, flush=True)


def spawn_child(name: str, listener: socket.socket, *, is_holding: bool) -> None:
    """Fork a child in a session of its own under another name; it keeps the listening socket when `is_holding`."""
    if os.fork():
        return
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
    if not is_holding:
        listener.close()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(_CHILD_LIFE_S)
    while True:
        signal.pause()


def main() -> None:
    wanted = json.loads(Path(sys.argv[1]).read_text())
    if wanted["exit_at_start"] >= 0:
        print("fake: loading the model", file=sys.stderr)
        print(f"fake: told to exit with {wanted['exit_at_start']}", file=sys.stderr, flush=True)
        sys.exit(wanted["exit_at_start"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN if wanted["ignore_sigterm"] else lambda *_: os._exit(0))
    Handler.wanted = wanted
    Handler.counters = Counters()
    Handler.ready_at = time.monotonic() + wanted["start_delay_s"]
    try:
        server = Server((wanted["host"], wanted["port"]), Handler)
    except OSError as error:
        print(
            f"fake: cannot listen on {wanted['host']}:{wanted['port']}: {error.strerror}", file=sys.stderr, flush=True
        )
        sys.exit(4)
    for number in range(wanted["fork_tree"]):
        spawn_child(f"worker:{number}", server.socket, is_holding=False)
    if wanted["hold_port"]:
        spawn_child("holder", server.socket, is_holding=True)
    ballast = bytearray(wanted["memory_bytes"])
    for page in range(0, len(ballast), 4096):
        ballast[page] = 1
    print(f"fake: serving {wanted['served_name']} on {wanted['host']}:{wanted['port']}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
