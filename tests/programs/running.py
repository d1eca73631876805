"""Starts an adapter's real program by hand and talks to it; the contract suite has a node agent do that.

In: an adapter, settings, a model file. Out: `RunningEngine`. Engines and their environments: `tests/engine_models.py`.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from adapters.contract import JsonValue, LaunchRequest
from adapters.registry import adapter
from core.ids import DeviceId, ReplicaId
from tests.engine_models import engine_python
from tests.waiting import until

SERVED_NAME = "contract-model"
KEY = "contract-secret-key"
START_DEADLINE_S = 60.0


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One HTTP answer, read to its end."""

    status: int
    text: str

    def json(self) -> dict:
        """Return the body as an object."""
        return json.loads(self.text)

    def events(self) -> list[str]:
        """Return the data of each server-sent event."""
        return [line[6:] for line in self.text.splitlines() if line.startswith("data: ")]


class RunningEngine:
    """One engine process; leaving the context kills it."""

    def __init__(
        self,
        name: str,
        *,
        directory: Path,
        model: Path | None = None,
        settings: Mapping[str, JsonValue] | None = None,
        port: int = 0,
    ) -> None:
        self.adapter = adapter(name)
        self.port = port or free_port()
        self.started_streams = 0
        self._lock = threading.Lock()
        request = LaunchRequest(
            replica_id=ReplicaId("rep_contract"),
            engine_version=self.adapter.default_version,
            python=engine_python(self.adapter),
            model_path=str(model) if model else "",
            served_name=SERVED_NAME,
            settings=settings or {},
            devices=(DeviceId("cpu"),),
            host="127.0.0.1",
            port=self.port,
            api_key=KEY,
            work_dir=str(directory),
        )
        launch = self.adapter.launch(request)
        for path, text in launch.files.items():
            place = directory / path
            place.write_text(text)
            place.chmod(0o600)
        self.log = directory / "engine.log"
        environment = {"PATH": os.environ["PATH"], "HOME": str(directory), **launch.env}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                launch.argv, env=environment, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def __enter__(self) -> "RunningEngine":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            # Engines of several processes leave the others behind when only the first is killed.
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        self.process.wait(10)

    def request(self, method: str, path: str, body: object = None, *, key: str = KEY, timeout_s: float = 20) -> Reply:
        """Send one request on a connection of its own and return the whole answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {**headers, "content-type": "application/json"})
            answer = connection.getresponse()
            return Reply(status=answer.status, text=answer.read().decode())
        finally:
            connection.close()

    def ask(self, path: str, body: Mapping[str, object], *, key: str = KEY) -> Reply:
        """POST `body` for the served model."""
        return self.request("POST", path, {"model": SERVED_NAME, **body}, key=key)

    def health_status(self) -> int:
        """Return the status of the declared health path without a key, 0 when nothing answers."""
        try:
            return self.request("GET", self.adapter.health.path, key="").status
        except OSError:
            return 0

    def _is_settled(self) -> bool:
        return self.process.poll() is not None or self.health_status() == self.adapter.health.ready_status

    def wait_until_ready(self, timeout_s: float = START_DEADLINE_S) -> "RunningEngine":
        """Wait until it is healthy as declared."""
        until(self._is_settled, timeout_s, self.adapter.name)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def stream_until_cut(self, body: Mapping[str, object]) -> None:
        """Read a stream until it ends or the engine goes away; counts itself in `started_streams`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read(1)
            with self._lock:
                self.started_streams += 1
            answer.read()
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()

    def terminate(self, timeout_s: float) -> int:
        """Send SIGTERM and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it did not end in time.
        """
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)
