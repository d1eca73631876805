"""The contract suite's hand on a real node agent and a real door, and what it deploys there.

In: an engine's name, a model, settings. Out: `Served`, a replica that the node agent spawned and the door
routes to. Called by the suite's fixtures. Nothing here starts an engine or installs one: it writes `ReplicaWant`s.
"""

import base64
import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from adapters.contract import Adapter, Endpoint, JsonValue
from adapters.registry import adapter
from core.infra import processes
from core.infra.processes import ProcessMark
from node_agent import shim_client
from protos.slice.node.v1 import node_pb2
from tests.engine_models import engines_dir, installing
from tests.waiting import until

ROOT = Path(__file__).parents[2]
START_S = 300.0
"""vLLM on two busy cores is ready after a minute; nothing needs five."""
ANSWER_S = 120.0
SERVED_NAME = "contract-model"
_BEGINNING = frozenset({"assigned", "fetching", "installing"})


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One HTTP answer, read to its end."""

    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> dict:
        """Return the body as an object."""
        return json.loads(self.text)

    def events(self) -> list[str]:
        """Return the data of each server-sent event."""
        return [line[6:] for line in self.text.split("\n") if line.startswith("data: ")]

    def chunks(self) -> list[dict]:
        """Return the JSON of each event but `[DONE]`."""
        return [json.loads(event) for event in self.events() if event != "[DONE]"]


def exchange(
    port: int, method: str, path: str, body: object = None, *, key: str = "", timeout_s: float = ANSWER_S
) -> Reply:
    """Send one request to loopback on a connection of its own and return the whole answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return Reply(status=answer.status, text=answer.read().decode(), headers=dict(answer.getheaders()))
    finally:
        connection.close()


class Stage:
    """One node agent and one door; leaving the context ends both and every engine."""

    def __init__(
        self, directory: Path, *, before_path: Sequence[Path] = (), root: Path = ROOT, **node_changes: object
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "node").mkdir(mode=0o700)
        # The node agent's own directory of environments, kept between runs: it installs what is not there yet.
        (directory / "node" / "engines").symlink_to(engines_dir())
        self._log = directory / "stage.log"
        search = os.pathsep.join([*(str(path) for path in before_path), os.environ["PATH"]])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.contract.stage_process", str(directory), json.dumps(node_changes)],
                cwd=root,
                env={**os.environ, "PATH": search},
                start_new_session=True,  # it ends with its stdin, and must have the time to end its engines
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._asking = threading.Lock()
        self._wants: dict[str, node_pb2.ReplicaWant] = {}
        self._pulls: dict[str, node_pb2.FileWant] = {}
        self._versions: dict[Path, node_pb2.FileReport] = {}
        self._generation = 0
        facts = self._answer(60.0)
        self.data_dir = Path(facts["data_dir"])
        self.agent_log = Path(facts["agent_log"])
        self.door_port: int = facts["door_port"]
        self.door_key: str = facts["door_key"]

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            code = self._process.wait(60)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait(10)
            self._reader.join(10)
            assert self._process.stdout is not None
            self._process.stdout.close()
        assert code == 0, self._log.read_text()[-4000:]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _answer(self, timeout_s: float = 30.0) -> dict[str, Any]:
        line = self._answers.get(timeout=timeout_s)
        assert line, f"the stage ended: {self._log.read_text()[-4000:]}"
        found: dict[str, Any] = json.loads(line)
        return found

    def _ask(self, **asked: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        with self._asking:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
            return self._answer()

    # -- what a controller does ---------------------------------------------------------------------------------------

    def want(self, want: node_pb2.ReplicaWant) -> None:
        """Add or change one replica of the desired set."""
        self._wants[want.replica_id] = want
        self._send()

    def forget(self, replica_id: str) -> None:
        """Leave a replica out of the desired set."""
        self._wants.pop(replica_id, None)
        self._send()

    def _send(self) -> None:
        self._generation += 1
        desired = node_pb2.Desired(
            leader_epoch=1,
            generation=self._generation,
            replicas=self._wants.values(),
            files=self._pulls.values(),
        )
        self._ask(do="want", desired=base64.b64encode(desired.SerializeToString()).decode())

    def observed(self) -> node_pb2.Observed:
        """Return what the node agent said last."""
        return node_pb2.Observed.FromString(base64.b64decode(self._ask(do="look")["observed"]))

    def inventory(self) -> node_pb2.Inventory:
        """Return what the node agent said of its machine when it connected last."""
        until(lambda: self._ask(do="look")["hellos"], 30.0, "the node agent's hello")
        return node_pb2.Inventory.FromString(base64.b64decode(self._ask(do="look")["inventory"]))

    def report(self, replica_id: str) -> node_pb2.ReplicaReport | None:
        """Return the newest report of a replica."""
        return next((one for one in self.observed().replicas if one.replica_id == replica_id), None)

    def is_applied(self) -> bool:
        """Return whether the door serves by the newest routes."""
        return bool(self._ask(do="look")["is_applied"])

    def hellos(self) -> int:
        """Return how often the node agent connected."""
        return int(self._ask(do="look")["hellos"])

    def end_agent(self, number: signal.Signals) -> int:
        """Send a signal to the node agent and return its exit code."""
        return int(self._ask(do="end", signal=number)["code"])

    def start_agent(self) -> None:
        """Start the node agent again."""
        self._ask(do="start")

    def pull(self, model: Path) -> node_pb2.FileReport:
        """Return the report of a file or folder of this disk in the node's store, pulled there on the first call."""
        if model not in self._versions:
            want_id = f"pul_{len(self._versions)}"
            self._pulls[want_id] = node_pb2.FileWant(want_id=want_id, source=f"file:{model}")
            self._send()
            report: list[node_pb2.FileReport] = []

            def is_over() -> bool:
                report[:] = [
                    one for one in self.observed().files if one.want_id == want_id and one.state in ("done", "failed")
                ]
                return bool(report)

            until(is_over, START_S, f"{model} to be pulled")
            del self._pulls[want_id]
            self._send()
            assert report[0].state == "done", report[0].message
            self._versions[model] = report[0]
        return self._versions[model]

    # -- deploying ----------------------------------------------------------------------------------------------------

    def deploy(
        self,
        engine: str,
        *,
        name: str,
        model: Path | None = None,
        settings: Mapping[str, JsonValue] | None = None,
        served_name: str = SERVED_NAME,
        devices: Sequence[str] = ("cpu",),
    ) -> "Served":
        """Want a replica and return it at once; `Served.wait_until_ready` waits."""
        one = adapter(engine)
        want = node_pb2.ReplicaWant(
            replica_id=f"rep_{name}",
            deployment=name,
            served_name=served_name,
            engine=engine,
            # "" is whatever program of that name the node has.
            engine_version="" if one.install_plan(one.default_version).binary else one.default_version,
            settings_json=json.dumps(dict(settings or {})),
            files=[
                node_pb2.FileWant(source=one.source, sha256=one.sha256, size_bytes=one.size_bytes, path=one.path)
                for one in (self.pull(model).version_files if model else ())
            ],
            devices=[node_pb2.DevicePromise(device_id=device, bytes=1) for device in devices],
            engine_key=f"secret-of-{name}",
            desired="run",
        )
        served = Served(self, want, one, self.pull(model).facts_json if model else '{"format": ""}')
        with installing(engine):
            self.want(want)
            until(lambda: (report := served.report()) and report.state not in _BEGINNING, 1200.0, f"{name} to begin")
        return served


class Served:
    """One deployed replica, seen from outside: through the door, or, where it concerns the engine alone, directly."""

    def __init__(self, stage: Stage, want: node_pb2.ReplicaWant, one: Adapter, facts_json: str) -> None:
        self.stage = stage
        self.facts_json = facts_json
        self.want = want
        self.adapter = one
        self.name = want.deployment
        self.settings: Mapping[str, JsonValue] = json.loads(want.settings_json)
        self._clients: list[openai.OpenAI] = []

    # -- its life -----------------------------------------------------------------------------------------------------

    def report(self) -> node_pb2.ReplicaReport | None:
        """Return the node agent's newest report of it."""
        return self.stage.report(self.want.replica_id)

    def until_report(
        self, is_reached: Callable[[node_pb2.ReplicaReport], object], what: str, timeout_s: float = START_S
    ) -> node_pb2.ReplicaReport:
        """Return the first report for which `is_reached` holds."""
        found: list[node_pb2.ReplicaReport] = []

        def look() -> bool:
            report = self.report()
            if report is not None and is_reached(report):
                found.append(report)
            return bool(found)

        try:
            until(look, timeout_s, f"{self.name}: {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}; last report: {self.report()}; log: {self.log()[-3000:]}") from None
        return found[0]

    def until_state(self, state: str, timeout_s: float = START_S) -> node_pb2.ReplicaReport:
        """Return the first report in `state`."""
        return self.until_report(lambda report: report.state == state, f"to be {state}", timeout_s)

    def wait_until_ready(self, incarnation: int = 1) -> "Served":
        """Wait until it is ready in this or a later incarnation and the door routes to it."""
        self.until_report(lambda one: one.state == "ready" and one.incarnation >= incarnation, "to be ready")
        until(self.stage.is_applied, 30.0, "the door's routes")
        return self

    def ask_to_stop(self) -> None:
        """Tell the node agent to end it."""
        self.want.desired = "stop"
        self.stage.want(self.want)

    def remove(self) -> None:
        """Stop it, wait until it is gone, and forget it."""
        for client in self._clients:
            client.close()
        if self.report() is not None:
            self.ask_to_stop()
            self.until_state("stopped", 60.0)
        self.stage.forget(self.want.replica_id)
        until(lambda: self.report() is None, 30.0, f"{self.name} to be forgotten")

    @property
    def pid(self) -> int:
        """The leader's pid, 0 while there is none."""
        report = self.report()
        return report.pid if report else 0

    @property
    def port(self) -> int:
        """The engine's own port."""
        report = self.report()
        return report.port if report else 0

    @property
    def directory(self) -> Path:
        """The replica's directory on the node."""
        return self.stage.data_dir / "replicas" / self.want.replica_id

    def log(self) -> str:
        """Return the engine's log so far."""
        file = self.directory / "engine.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def members(self) -> list[ProcessMark]:
        """Return every living process of its tree, the shim aside."""
        record = shim_client.read_record(self.directory)
        if record is None or record.status.shim is None or not processes.is_alive(record.status.shim):
            return []
        shim = record.status.shim
        return [one for one in processes.family(frozenset({shim.pid})) if one != shim]

    # -- through the door ---------------------------------------------------------------------------------------------

    def client(self, **more: Any) -> openai.OpenAI:
        """Return an official client on the door."""
        made = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.stage.door_port}/v1",
            api_key=self.stage.door_key,
            max_retries=0,
            timeout=ANSWER_S,
            **more,
        )
        self._clients.append(made)
        return made

    def ask(self, endpoint: Endpoint, body: object, *, timeout_s: float = ANSWER_S) -> Reply:
        """POST to the door; an object is asked of this model unless it names another."""
        path = {Endpoint.CHAT: "chat/completions"}.get(endpoint, endpoint.value)
        asked = {"model": self.name, **body} if isinstance(body, dict) else body
        return exchange(
            self.stage.door_port, "POST", f"/v1/{path}", asked, key=self.stage.door_key, timeout_s=timeout_s
        )

    @contextmanager
    def unanswered(self, body: Mapping[str, object]) -> Iterator[http.client.HTTPConnection]:
        """POST a chat through the door and give the connection; leaving closes it, whatever has come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.stage.door_port, timeout=ANSWER_S)
        try:
            headers = {"content-type": "application/json", "authorization": f"Bearer {self.stage.door_key}"}
            connection.request("POST", "/v1/chat/completions", json.dumps({"model": self.name, **body}), headers)
            yield connection
        finally:
            connection.close()

    @contextmanager
    def stream(self, body: Mapping[str, object]) -> Iterator[http.client.HTTPResponse]:
        """POST a chat through the door and give the answer unread; leaving closes the connection at once."""
        with self.unanswered(body) as connection:
            answer = connection.getresponse()
            try:
                yield answer
            finally:
                answer.close()

    # -- the engine alone ---------------------------------------------------------------------------------------------

    def direct(self, method: str, path: str, body: object = None, *, key: str | None = None, **more: Any) -> Reply:
        """Ask the engine's own port, with its key unless another is given."""
        return exchange(self.port, method, path, body, key=self.want.engine_key if key is None else key, **more)

    def health_status(self) -> int:
        """Return the status of the declared health path without a key, 0 when nothing answers."""
        try:
            return self.direct("GET", self.adapter.health.path, key="").status
        except OSError:
            return 0

    def metric(self, ours: str) -> float | None:
        """Return the sum of one of our metrics on the engine's own page, None when it declares none."""
        theirs = self.adapter.metrics.get(ours)
        if theirs is None:
            return None
        lines = self.direct("GET", "/metrics").text.splitlines()
        found = [line.rsplit(" ", 1)[1] for line in lines if line.split("{")[0].split(" ")[0] == theirs]
        return sum(float(value) for value in found)
