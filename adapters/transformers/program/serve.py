"""Serves one model of `transformers` by OpenAI's HTTP API, and ends on SIGTERM.

Run by path in the engine's environment: `python -I serve.py FILE`, FILE in JSON. Uses the standard library and
`transformers` with what it brings only. It listens when the model is loaded. Exits 0 after SIGTERM, 2 when the file is
unusable, 3 when the model cannot be loaded, 4 when the port is not ours; the reason stands in the last line on stderr.
"""

import base64
import hashlib
import hmac
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `-I` leaves it out

import answers
import asked
import generation
import torch

_MAX_BODY_BYTES = 16 * 1024**2
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


class Counts:
    """The numbers of the metrics page."""

    def __init__(self):
        self._lock = threading.Lock()
        self._numbers = dict.fromkeys(
            ("prompt_tokens_total", "prompt_seconds_total", "generated_tokens_total", "generated_seconds_total"), 0
        )
        self._numbers["requests_running"] = 0

    def add(self, name, amount):
        """Count `amount` more."""
        with self._lock:
            self._numbers[name] += amount

    def page(self, waiting):
        """Return Prometheus's text form."""
        with self._lock:
            numbers = {**self._numbers, "requests_waiting": waiting}
        kinds = {name: "counter" if name.endswith("_total") else "gauge" for name in numbers}
        return "".join(f"# TYPE transformers:{n} {kinds[n]}\ntransformers:{n} {v}\n" for n, v in numbers.items())


class Server(ThreadingHTTPServer):
    """The listening socket with what its handlers share."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, wanted, model, slots):
        self.name = wanted["served_name"]
        self.key = hashlib.sha256(wanted["api_key"].encode()).digest() if wanted["api_key"] else b""
        self.has_embeddings = wanted["embeddings"]
        self.model, self.slots, self.counts = model, slots, Counts()
        super().__init__((wanted["host"], wanted["port"]), Handler)

    def handle_error(self, request, client_address):
        """A client that hangs up is no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One connection; kept open between requests."""

    protocol_version = "HTTP/1.1"
    timeout = 3600  # seconds of silence after which a kept-alive connection is closed
    disable_nagle_algorithm = True

    def log_message(self, *_):
        """Say nothing: paths and addresses are in the front door's log."""

    def do_GET(self):
        """Answer the probe, the list of models and the metrics page."""
        if self.path == "/health":
            self._send(200, {"status": "ok"})
        elif not self._has_key():
            self._refuse_stranger()
        elif self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": self.server.name, "object": "model", "owned_by": ""}]})
        elif self.path == "/metrics":
            self._send_text(200, self.server.counts.page(self.server.slots.waiting), "text/plain; version=0.0.4")
        else:
            self._send_error_of(asked.Refused("there is no such path", status=404))

    def do_POST(self):
        """Answer the three endpoints."""
        if not self._has_key():
            self.close_connection = True  # its body stays unread
            self._refuse_stranger()
            return
        self._is_begun = False
        try:
            body = self._body()
            if self.path not in _PATHS or (self.path == "/v1/embeddings" and not self.server.has_embeddings):
                raise asked.Refused("there is no such path", status=404)
            asked.checked_model(body, self.server.name)
            if self.path == "/v1/embeddings":
                self._embeddings(body)
            else:
                self._generate(body, is_chat=self.path == "/v1/chat/completions")
        except asked.Refused as refused:
            self._send_error_of(refused)
        except (generation.Gone, OSError):
            self.close_connection = True
        except Exception:
            traceback.print_exc()
            self.close_connection = True
            self._send_error_of(asked.Refused("the engine broke on this request", kind="server_error", status=500))

    # -- what is answered

    def _generate(self, body, *, is_chat):
        wanted = (asked.asked_chat if is_chat else asked.asked_completion)(body, self.server.model)
        self._taking_turns(lambda: self._answer(answers.Answer(self.server.name, is_chat, wanted), wanted))

    def _answer(self, answer, wanted):
        counts, model, begun = self.server.counts, self.server.model, time.monotonic()
        text = generation.Text(model.tokenizer, wanted.stops)
        counts.add("prompt_tokens_total", len(wanted.ids))
        if wanted.is_stream:
            self._begin_stream()
            self._event(answer.opening())
        for token in model.tokens(wanted.ids, wanted.sampling, self._is_gone):
            now = time.monotonic()
            counts.add("generated_seconds_total" if answer.tokens else "prompt_seconds_total", now - begun)
            counts.add("generated_tokens_total", 1)
            begun = now
            piece = answer.add(token, text.add(token.number), model.tokenizer)
            if wanted.is_stream and piece:
                self._event(piece)
            if text.is_stopped:
                break
        rest = "" if text.is_stopped else text.rest()
        is_cut = not text.is_stopped and answer.tokens >= min(
            wanted.sampling.max_tokens, model.context - len(wanted.ids)
        )
        last = answer.close(rest, "length" if is_cut else "stop")
        if not wanted.is_stream:
            self._send(200, answer.whole())
            return
        for piece in last:
            self._event(piece)
        if wanted.wants_usage:
            self._event(answer.usage_event())
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _embeddings(self, body):
        inputs, is_base64 = asked.asked_embeddings(body, self.server.model)

        def vectors():
            for ids in inputs:
                vector = self.server.model.embedding(ids, self._is_gone)
                self.server.counts.add("prompt_tokens_total", len(ids))
                yield base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if is_base64 else vector

        found = self._taking_turns(lambda: list(vectors()))
        data = [{"object": "embedding", "index": place, "embedding": one} for place, one in enumerate(found)]
        total = sum(len(ids) for ids in inputs)
        usage = {"prompt_tokens": total, "total_tokens": total}
        self._send(200, {"object": "list", "model": self.server.name, "data": data, "usage": usage})

    def _taking_turns(self, work):
        self.server.slots.take(self._is_gone)
        self.server.counts.add("requests_running", 1)
        try:
            return work()
        finally:
            self.server.counts.add("requests_running", -1)
            self.server.slots.give_back()

    # -- HTTP

    def _has_key(self):
        scheme, _, given = self.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        return not self.server.key or (scheme.lower() == "bearer" and hmac.compare_digest(digest, self.server.key))

    def _refuse_stranger(self):
        self._send_error_of(asked.Refused("the key is missing or wrong", code="invalid_api_key", status=401))

    def _is_gone(self):
        """Return whether the client closed its side: the socket is readable and holds nothing."""
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except (OSError, ValueError):
            return True

    def _body(self):
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            status = 413 if length.isdigit() else 411
            raise asked.Refused(f"a body needs a content-length of at most {_MAX_BODY_BYTES}", status=status)
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise asked.Refused("the body is not JSON") from None

    def _send_error_of(self, refused):
        error = {"message": str(refused), "type": refused.kind, "param": refused.param, "code": refused.code}
        try:
            if self.close_connection and getattr(self, "_is_begun", False):
                self._event({"error": error})
            else:
                self._send(refused.status, {"error": error})
        except OSError:
            self.close_connection = True

    def _send(self, status, body):
        self._send_text(status, json.dumps(body), "application/json")

    def _send_text(self, status, text, kind):
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _begin_stream(self):
        self._is_begun = True
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _event(self, body):
        self._chunk(f"data: {json.dumps(body)}\n\n".encode())

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def _fail(code, reason):
    sys.stdout.flush()
    print(f"slice: {reason}", file=sys.stderr, flush=True)
    os._exit(code)


def _port_fault(host, port):
    """Return why the port cannot be had, "" when it can: better known before loading than after."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def main():
    """Load, listen, serve."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))  # nothing here is worth a slow goodbye
    try:
        wanted = json.loads(Path(sys.argv[1]).read_text())
        host, port = wanted["host"], wanted["port"]
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        _fail(2, f"the configuration is unusable: {error!r}")
    if fault := _port_fault(host, port):
        _fail(4, f"cannot listen on {host}:{port}: {fault}")
    try:
        if wanted["threads"]:
            torch.set_num_threads(wanted["threads"])
        model = generation.Model(wanted["model_path"], dtype=wanted["dtype"], context=wanted["context"])
    except Exception as error:
        traceback.print_exc()
        _fail(3, f"transformers did not load {wanted['model_path']}: {str(error).splitlines()[:1]}")
    try:
        server = Server(wanted, model, generation.Slots(wanted["slots"]))
    except OSError as error:
        _fail(4, f"cannot listen on {host}:{port}: {error.strerror}")
    print(f"slice: serving {wanted['served_name']} on http://{host}:{port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
