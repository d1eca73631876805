"""A llama.cpp server as a child process, and requests to it that end when their client goes.

Comes in: a GGUF file and sizes. Goes out: `Runner`, with JSON answers and events of streams. Called by the stand-ins.
"""

import http.client
import json
import os
import select
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = Path(__file__).parent / "llama_runner.py"
_LOAD_DEADLINE_S = 300.0


class RunnerError(Exception):
    """llama.cpp refused or broke off: its status (0 when it went away) and the raw text of its answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class ClientGone(Exception):
    """The client closed its connection."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a runner is started with; tokens per slot, slots, tokens per batch."""

    name: str  # of the process: what `ps` shows
    model_path: str
    context: int
    parallel: int = 1
    batch: int = 512
    context_shift: bool = False
    embedding: bool = False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Runner:
    """One child; `stop` kills it, as Ollama does."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.port = free_port()
        self._file = Path(tempfile.mkstemp(prefix="runner-", suffix=".json")[1])
        self._file.write_text(json.dumps({**load.__dict__, "port": self.port}))
        python = os.environ["STANDIN_PYTHON"]
        self.process = subprocess.Popen([python, "-I", str(_PROGRAM), str(self._file)], stdout=subprocess.PIPE)

    def wait_until_ready(self) -> bool:
        """Return whether the model was loaded; False when the child ended."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], _LOAD_DEADLINE_S)
        return bool(ready) and self.process.stdout.readline() == b"ready\n"

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._file.unlink(missing_ok=True)

    def ask(self, path: str, body: object, client: socket.socket | None = None) -> dict:
        """Return the JSON answer to a POST.

        Raises:
            RunnerError: another status than 200, or no answer.
            ClientGone: `client` was closed meanwhile.
        """
        with _Exchange(self.port, path, body, client) as exchange:
            return json.loads(exchange.whole())

    def events(self, path: str, body: object, client: socket.socket | None = None) -> Iterator[dict]:
        """Yield the JSON of each server-sent event of a POST's answer; raises as `ask`."""
        with _Exchange(self.port, path, body, client) as exchange:
            for line in exchange.lines():
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    yield json.loads(line[6:])


class _Exchange:
    """One POST; a watcher thread closes it when the client goes, however long llama.cpp stays silent."""

    def __init__(self, port: int, path: str, body: object, client: socket.socket | None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        self._is_client_gone = False
        self._done = socket.socketpair()
        try:
            self._connection.connect()
            self._socket = self._connection.sock
            if client is not None:
                threading.Thread(target=self._watch, args=(client,), daemon=True).start()
            self._connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            self._answer = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._close()
            raise self._fault(str(error)) from error
        if self._answer.status != 200:
            text = self._answer.read().decode(errors="replace")
            self._close()
            raise RunnerError(self._answer.status, text)

    def __enter__(self) -> "_Exchange":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def whole(self) -> bytes:
        try:
            return self._answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._fault(str(error)) from error

    def lines(self) -> Iterator[bytes]:
        while True:
            try:
                line = self._answer.readline()
            except (OSError, http.client.HTTPException) as error:
                raise self._fault(str(error)) from error
            if self._is_client_gone:
                raise ClientGone
            if not line:
                return
            yield line.rstrip(b"\r\n")

    def _fault(self, text: str) -> Exception:
        return ClientGone() if self._is_client_gone else RunnerError(0, text or "unexpected EOF")

    def _watch(self, client: socket.socket) -> None:
        try:
            readable, _, _ = select.select([client, self._done[1]], [], [])
            if client in readable and client.recv(1, socket.MSG_PEEK) == b"":
                self._is_client_gone = True
        except (OSError, ValueError):
            self._is_client_gone = True
        if self._is_client_gone:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

    def _close(self) -> None:
        self._connection.close()
        self._done[0].close()  # wakes the watcher
