"""The runner of an engine that runs elsewhere: it probes, reports and forgets, and never starts anything."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.origins import parse_base_url
from core.states import Desired, ReplicaState
from node_agent.remote_probe import RemoteProbe
from node_agent.runner import Runner
from protos.slice.node.v1 import node_pb2
from tests.gateway.scripted import Exchange, ScriptedEngine
from tests.node_agent import trees
from tests.node_agent.nodes import Node
from tests.node_agent.test_runner import runner_of, running
from tests.tls import Authority, in_front_of, swallowing_first

KEY = "sk-remote"


class Remote:
    """The endpoint's answers to a probe; `status` may be changed between two."""

    def __init__(self) -> None:
        self.status = 200
        self.extra = ""

    async def answer(self, exchange: Exchange) -> None:
        is_known = exchange.headers.get("authorization") == f"Bearer {KEY}"
        await exchange.reply(b"{}", status=self.status if is_known else 401, extra=self.extra)


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
async def plain(remote: Remote) -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine(remote.answer) as engine:
        yield engine


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        await node.close()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path / "tls")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


def want(base_url: str, *, key: str = KEY, **settings: object) -> node_pb2.ReplicaWant:
    return node_pb2.ReplicaWant(
        replica_id="rep_far",
        deployment="gpt",
        served_name="gpt",
        engine="openai",
        engine_version="v1",
        settings_json=json.dumps({"base_url": base_url, **settings}),
        devices=[node_pb2.DevicePromise(device_id="cpu", bytes=0)],
        engine_key=key,
        desired="run",
        runtime="external",
    )


async def until_state(runner: Runner, state: ReplicaState, words: str = "") -> node_pb2.ReplicaReport:
    await trees.until(lambda: runner.state is state and words in runner.report().message)
    return runner.report()


async def test_a_remote_behind_tls_is_ready_with_its_url_and_nothing_is_started(
    node: Node, plain: ScriptedEngine, authority: Authority
) -> None:
    async with (
        in_front_of(plain.port, authority.context) as port,
        runner_of(node, lambda: 0.5, want=want(f"https://localhost:{port}/deep/v1")) as runner,
        running(runner),
    ):
        report = await until_state(runner, ReplicaState.READY)
        assert (report.base_url, report.pid) == (f"https://localhost:{port}/deep", 0)
        assert (report.host, report.port, report.incarnation) == ("localhost", port, 1)
        seen = plain.exchanges[0]
        assert (seen.method, seen.path, seen.headers["host"]) == ("GET", "/deep/v1/models", f"localhost:{port}")
    assert not list(node.shim_dir.glob("*"))
    left = {path.name for path in (node.data_dir / "replicas" / "rep_far").iterdir()}
    assert not left & {"engine.log", "record.json", "work", "model"}


async def test_an_address_that_swallows_everything_leaves_time_for_the_next(
    plain: ScriptedEngine, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_front_of(plain.port, authority.context) as port:
        with swallowing_first(port, monkeypatch):
            origin = parse_base_url(f"https://localhost:{port}")
            assert await RemoteProbe().status_of(origin, "/v1/models", KEY, 2.0) == 200


async def test_a_certificate_of_a_stranger_is_not_trusted(node: Node, plain: ScriptedEngine, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    async with (
        in_front_of(plain.port, stranger.context) as port,
        runner_of(node, lambda: 0.5, want=want(f"https://localhost:{port}")) as runner,
        running(runner),
    ):
        await until_state(runner, ReplicaState.STARTING, "certificate cannot be trusted")
    assert not plain.exchanges, "the key never left"


async def test_a_certificate_for_another_name_is_not_trusted(
    node: Node, plain: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority(tmp_path / "other", names=("elsewhere.example",))
    monkeypatch.setenv("SSL_CERT_FILE", str(other.file))
    async with (
        in_front_of(plain.port, other.context) as port,
        runner_of(node, lambda: 0.5, want=want(f"https://localhost:{port}")) as runner,
        running(runner),
    ):
        await until_state(runner, ReplicaState.STARTING, "certificate cannot be trusted")
    assert not plain.exchanges


@pytest.mark.parametrize(
    ("status", "extra", "words"),
    [
        (401, "", "refuses our key (401)"),
        (403, "", "refuses our key (403)"),
        (500, "", "answers 500 to GET /v1/models"),
        (302, "Location: http://127.0.0.1:1/\r\n", "redirects (302), which is not followed"),
    ],
    ids=["401", "403", "500", "redirect"],
)
async def test_what_is_wrong_with_a_remote_is_told(
    node: Node, plain: ScriptedEngine, remote: Remote, status: int, extra: str, words: str
) -> None:
    remote.status, remote.extra = status, extra
    url = f"http://127.0.0.1:{plain.port}"
    async with runner_of(node, lambda: 0.5, want=want(url)) as runner, running(runner):
        report = await until_state(runner, ReplicaState.STARTING, words)
        assert report.code == "engine.unresponsive"
        assert KEY not in report.message


async def test_a_new_key_is_tried_at_once(node: Node, plain: ScriptedEngine) -> None:
    url = f"http://127.0.0.1:{plain.port}"
    async with runner_of(node, lambda: 0.5, want=want(url, key="old")) as runner, running(runner):
        await until_state(runner, ReplicaState.STARTING, "refuses our key")
        runner.wish(Desired.RUN, key=KEY)
        await until_state(runner, ReplicaState.READY)


async def test_a_url_that_is_refused_fails_for_good(node: Node) -> None:
    async with runner_of(node, lambda: 0.5, want=want("https://169.254.169.254")) as runner, running(runner):
        report = await until_state(runner, ReplicaState.FAILED)
        assert report.code == "engine.setting_invalid"


async def test_the_next_node_agent_takes_it_up_and_a_stop_forgets_it(node: Node, plain: ScriptedEngine) -> None:
    wanted = want(f"http://127.0.0.1:{plain.port}")
    async with runner_of(node, lambda: 0.5, want=wanted) as runner, running(runner):
        first = await until_state(runner, ReplicaState.READY)
        await trees.until(lambda: "load_s" in (runner.log_path.parent / "launch.json").read_text())
    async with runner_of(node, lambda: 0.5, want=wanted) as runner, running(runner):
        again = await until_state(runner, ReplicaState.READY)
        assert (again.incarnation, again.restarts) == (first.incarnation, 0)
        asked = len(plain.exchanges)
        runner.wish(Desired.STOP)
        async with asyncio.timeout(5):
            await runner.has_stopped.wait()
        assert not runner.report().base_url
    assert len(plain.exchanges) == asked
