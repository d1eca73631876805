"""The programs under test: the stand-in always, the real one where PATH has it; and models for them."""

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ollama
import pytest

from adapters.contract import LaunchRequest, ModelFile
from adapters.registry import adapter
from core.ids import DeviceId, ReplicaId, Sha256
from node_agent import launching
from node_agent.launching import Prepared
from node_agent.provisioning import Provisioning
from node_agent.shim_client import ShimSpec
from tests import standins
from tests.engine_models import engine_python
from tests.ggufs import write_random_llama
from tests.standins import specs
from tests.standins.llama import free_port
from tests.waiting import until

CONTEXT = 512
TOOL_TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the stand-ins."""
    python = engine_python(adapter("llamacpp"))
    return standins.install(tmp_path_factory.mktemp("programs"), engine_python=python)


def real_program(name: str) -> str:
    """Return the real program's path, or skip the test."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"the real program {name!r} is not on PATH")
    return found


@pytest.fixture(scope="session", params=["stand-in", "real"])
def ollama_program(request: pytest.FixtureRequest, programs: Path) -> str:
    return str(programs / "ollama") if request.param == "stand-in" else real_program("ollama")


def model_file(path: Path) -> ModelFile:
    data = path.read_bytes()
    digest = Sha256(hashlib.sha256(data).hexdigest())
    return ModelFile(path=path.name, sha256=digest, size_bytes=len(data), stored_at=str(path))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    directory = tmp_path_factory.mktemp("store")
    return model_file(write_random_llama(directory / "chat.gguf", seed=7, context=CONTEXT, template=TOOL_TEMPLATE))


@pytest.fixture(scope="session")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    directory = tmp_path_factory.mktemp("store")
    return model_file(write_random_llama(directory / "embed.gguf", seed=8, context=CONTEXT, is_embedder=True))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def events(self) -> list[str]:
        return [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]


@dataclass
class Engine:
    """A running program; `work` is its replica's work directory."""

    process: subprocess.Popen
    port: int
    work: Path
    request: LaunchRequest
    log: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers or {})
            answer = connection.getresponse()
            head = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(status=answer.status, headers=head, body=answer.read())
        finally:
            connection.close()

    @contextlib.contextmanager
    def client(self) -> Iterator[ollama.Client]:
        client = ollama.Client(self.address)
        with contextlib.closing(client._client):  # the only way to close it
            yield client

    async def provision(self) -> str:
        one = adapter("ollama")
        return await Provisioning(one.provision(self.request), "").advance("127.0.0.1", self.port)


def launch_request(
    work: Path, executable: str, port: int, files: tuple[ModelFile, ...], **more: object
) -> LaunchRequest:
    values = {
        "replica_id": ReplicaId("rep_1"),
        "engine_version": "0.33.0",
        "python": "/nowhere/python",
        "executable": executable,
        "model_path": files[0].stored_at if files else "",
        "files": files,
        "served_name": "tiny",
        "settings": {"context": CONTEXT, "slots": 1},
        "devices": (DeviceId("cpu"),),
        "host": "127.0.0.1",
        "port": port,
        "api_key": "engine-secret",
        "work_dir": str(work),
    }
    return LaunchRequest(**{**values, **more})


@contextlib.contextmanager
def running(name: str, request: LaunchRequest, path: str, **more: str) -> Iterator[Engine]:
    """Start what the adapter describes as the node agent does: its files and links, its environment, its probe."""
    launch = adapter(name).launch(request)
    work = Path(request.work_dir)
    base = launching.engine_base_environment({**os.environ, "PATH": path})
    env = {**base, **launch.env, **launching.device_environment(request.devices), **more}
    spec = ShimSpec(
        shim_id="x", argv=launch.argv, env=env, cwd=work, log_path=work, record_dir=work, socket_path=work,
        incarnation=1, stop_grace_s=1.0, log_max_bytes=1,
    )  # fmt: skip
    launching.write_files(Prepared(spec=spec, work_dir=work, files=launch.files, links=launch.links))
    log = work.parent / f"{work.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(launch.argv, env=env, cwd=work, stdout=output, stderr=output)
    engine = Engine(process, request.port, work, request, log)
    try:
        until(lambda: _answers(engine, adapter(name).health.path), 60, name)
        yield engine
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def _answers(engine: Engine, path: str) -> bool:
    assert engine.process.poll() is None, engine.log.read_text()
    try:
        return engine.ask("GET", path).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def engine(ollama_program: str, chat_model: ModelFile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A managed Ollama, provisioned with the chat model under the name `tiny`."""
    work = tmp_path_factory.mktemp("replica") / "work"
    request = launch_request(work, ollama_program, free_port(), (chat_model,))
    with running("ollama", request, os.environ["PATH"]) as started:
        for step in adapter("ollama").provision(request):
            answer = started.ask(step.method, step.path, step.body)
            assert answer.status in step.statuses, answer.body
        yield started


def timed(work: object) -> float:
    """Return how long `work()` took, seconds."""
    begun = time.monotonic()
    work()  # type: ignore[operator]
    return time.monotonic() - begun


__all__ = ["specs"]
