"""Engines in real containers: served through the keeper, shut in, and gone without a trace whoever is killed.

Without a podman that works these tests skip and say why; the command lines are checked in test_container_argv.py.
"""

import asyncio
import contextlib
import hashlib
import http.client
import io
import json
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from adapters.registry import adapter
from core.infra import processes
from core.infra.clock import SystemClock
from core.infra.logs import Log
from core.states import Desired, ReplicaState
from node_agent.containers.house import ContainerHouse
from node_agent.runner import Runner
from node_agent.subprocesses import Children
from protos.slice.node.v1 import node_pb2
from tests.engine_models import engine_python
from tests.ggufs import write_random_llama
from tests.node_agent import nodes, trees
from tests.node_agent.nodes import Node
from tests.node_agent.podman import PYTHON, ROOT, Podman
from tests.node_agent.test_runner import runner_of, running


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    found = Podman(tmp_path_factory.mktemp("podman"))
    try:
        found.make_image({"/opt/slice/fake/serve.py": ROOT / "adapters/fake/program/serve.py"})
        yield found
    finally:
        found.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        await node.close()


def house_of(node: Node, podman: Podman) -> ContainerHouse:
    return ContainerHouse(
        data_dir=node.data_dir,
        environment=podman.environment,
        children=Children(node.data_dir / "children"),
        log=Log("test", SystemClock(), io.StringIO()),
        may_pull=False,
    )


@pytest.fixture
async def house(node: Node, podman: Podman) -> ContainerHouse:
    made = house_of(node, podman)
    await made.look()
    return made


def want(podman: Podman, **settings: object) -> node_pb2.ReplicaWant:
    plain = nodes.want(**settings)
    plain.runtime, plain.image = "container", podman.reference
    plain.devices[0].bytes = 64 * 1024**2
    return plain


@contextlib.asynccontextmanager
async def ready(
    node: Node, house: ContainerHouse, wanted: node_pb2.ReplicaWant, *, is_left_running: bool = False
) -> AsyncIterator[tuple[Runner, node_pb2.ReplicaReport]]:
    async with runner_of(node, lambda: 0.5, want=wanted, containers=house) as runner, running(runner):
        await until_ready(runner)
        try:
            yield runner, runner.report()
        finally:
            if not is_left_running:
                await stopped(runner)


async def until_ready(runner: Runner, incarnation: int = 1) -> None:
    def is_ready() -> bool:
        assert runner.state is not ReplicaState.FAILED, runner.report().message
        report = runner.report()
        return runner.state is ReplicaState.READY and bool(report.pid) and report.incarnation == incarnation

    try:
        await trees.until(is_ready, 40)
    except TimeoutError:
        log = runner.log_path.read_text() if runner.log_path.exists() else ""
        raise AssertionError(f"{runner.report()} {log}") from None


def ask(port: int, **body: object) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        asked = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], **body}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"authorization": "Bearer secret"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


async def stopped(runner: Runner) -> None:
    runner.wish(Desired.STOP)
    async with asyncio.timeout(40):
        await runner.has_stopped.wait()


def inside(podman: Podman, code: str) -> str:
    (name,) = podman.names()
    done = podman.run("exec", name, "python3", "-c", code)
    return (done.stdout + done.stderr).strip()


async def test_a_contained_engine_is_served_on_loopback_and_leaves_nothing(
    node: Node, house: ContainerHouse, podman: Podman
) -> None:
    async with ready(node, house, want(podman)) as (runner, report):
        assert (report.host, report.port > 0) == ("127.0.0.1", True)
        status, text = await asyncio.to_thread(ask, report.port)
        assert (status, json.loads(text)["model"]) == (200, "demo")
        status, text = await asyncio.to_thread(ask, report.port, stream=True, max_tokens=50)
        assert text.rstrip().endswith("[DONE]")
        assert "secret" not in Path(f"/proc/{report.pid}/cmdline").read_text()
        family = processes.family(frozenset({report.pid}))
        await trees.until(lambda: runner.report().memory_bytes > 0)
    assert podman.names() == []
    assert not [mark for mark in family if processes.is_alive(mark)]
    assert "slice: the container" in runner.log_path.read_text()


async def test_nothing_gets_out_of_a_container(node: Node, house: ContainerHouse, podman: Podman) -> None:
    """A listener on this machine, on loopback and on every interface, hears nothing from within; nor does a resolver
    answer. The same listener hears us, so that it would have heard.
    """
    heard: list[str] = []
    listener = socket.create_server(("0.0.0.0", 0))
    port = listener.getsockname()[1]

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, peer = listener.accept()
                heard.append(peer[0])
                link.close()

    threading.Thread(target=listen, daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))
        own = probe.getsockname()[0]
    try:
        async with ready(node, house, want(podman)) as (_, report):
            code = f"""
import os, socket
for host in ("127.0.0.1", "{own}", "1.1.1.1", "169.254.169.254"):
    try:
        socket.create_connection((host, {port}), 2)
        print("REACHED", host)
    except OSError as error:
        print("no", host, error.errno)
try:
    socket.getaddrinfo("example.com", 80)
    print("RESOLVED")
except OSError:
    print("no names")
with open("/proc/net/dev") as f:
    print("devices", [line.split(":")[0].strip() for line in f.readlines()[2:]])
"""
            said = await asyncio.to_thread(inside, podman, code)
            assert "REACHED" not in said
            assert "RESOLVED" not in said
            assert said.count("no ") >= 5, said
            assert "devices ['lo']" in said
            await asyncio.to_thread(lambda: socket.create_connection(("127.0.0.1", port), 2).close())
            await trees.until(lambda: heard)
            assert heard == ["127.0.0.1"], "only ours"
            assert (await asyncio.to_thread(ask, report.port))[0] == 200
    finally:
        listener.close()


async def test_a_container_has_no_power_and_sees_its_two_mounts_alone(
    node: Node, house: ContainerHouse, podman: Podman
) -> None:
    async with ready(node, house, want(podman)):
        code = """
import os
status = open("/proc/self/status").read()
fields = dict(line.split(":\\t", 1) for line in status.splitlines() if ":\\t" in line)
print("caps", {fields[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")})
print("new privileges", fields["NoNewPrivs"], "seccomp", fields["Seccomp"])
for place in ("/x", "/usr/x", "/opt/slice/x", "/etc/x"):
    try:
        open(place, "w")
        print("WROTE", place)
    except OSError as error:
        print("kept", error.errno)
os.chdir("/slice/work"); open("mine", "w").close(); open("/tmp/mine", "w").close()
print("root is", open("/proc/self/uid_map").read().split()[1])
print("sees", sorted(os.listdir("/slice")), sorted(os.listdir("/slice/work")))
print("pids", len([name for name in os.listdir("/proc") if name.isdigit()]))
"""
        said = await asyncio.to_thread(inside, podman, code)
        assert "caps {'0000000000000000'}" in said
        assert "new privileges 1 seccomp 2" in said
        assert "WROTE" not in said
        assert "sees ['work'] ['fake.json', 'mine']" in said
        assert "pids 2" in said
        if os.getuid() == 0:
            assert "root is 1878982656" in said


@pytest.fixture(autouse=True)
def no_control_group_is_left() -> Iterator[None]:
    before = set(Path("/sys/fs/cgroup").glob("**/libpod_parent/libpod-*"))
    yield
    assert not set(Path("/sys/fs/cgroup").glob("**/libpod_parent/libpod-*")) - before


@pytest.mark.parametrize("victim", ["engine", "keeper", "forwarder"])
async def test_whatever_is_killed_the_engine_comes_back_and_nothing_is_left(
    node: Node, house: ContainerHouse, podman: Podman, victim: str
) -> None:
    async with ready(node, house, want(podman)) as (runner, report):
        family = trees_of(node)
        os.kill(pid_of(victim, report.pid, node), signal.SIGKILL)
        await until_ready(runner, 2)
        assert (await asyncio.to_thread(ask, runner.report().port))[0] == 200
        assert not [mark for mark in family if processes.is_alive(mark)]
        assert len(podman.names()) == 1
    assert podman.names() == []


def trees_of(node: Node) -> set[processes.ProcessMark]:
    record = json.loads((node.data_dir / "replicas" / "rep_one" / "record.json").read_text())
    return {mark for mark in processes.family(frozenset({record["shim"]["pid"]})) if mark.pid != record["shim"]["pid"]}


def pid_of(victim: str, keeper: int, node: Node) -> int:
    def words(pid: int) -> str:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()

    found = {mark.pid: words(mark.pid) for mark in trees_of(node)}
    match victim:
        case "keeper":
            return keeper
        case "conmon":
            return next(pid for pid, line in found.items() if "conmon" in line.split(" ")[0])
        case "engine":
            return next(
                pid for pid, line in found.items() if "/opt/slice/fake/serve.py" in line and "conmon" not in line
            )
        case _:
            return next(pid for pid, line in found.items() if "keeper.py" in line and pid != keeper)


async def test_an_engine_whose_conmon_was_killed_serves_on_and_ends_when_told(
    node: Node, house: ContainerHouse, podman: Podman
) -> None:
    async with ready(node, house, want(podman)) as (runner, report):
        family = trees_of(node)
        os.kill(pid_of("conmon", report.pid, node), signal.SIGKILL)
        assert (await asyncio.to_thread(ask, report.port))[0] == 200
        assert runner.state is ReplicaState.READY
    assert podman.names() == []
    assert not [mark for mark in family if processes.is_alive(mark)]


async def test_a_killed_shim_s_container_is_found_and_removed(
    node: Node, house: ContainerHouse, podman: Podman
) -> None:
    async with ready(node, house, want(podman)) as (runner, _):
        family = trees_of(node)
        record = json.loads((node.data_dir / "replicas" / "rep_one" / "record.json").read_text())
        os.kill(record["shim"]["pid"], signal.SIGKILL)
        await until_ready(runner, 2)
        assert not [mark for mark in family if processes.is_alive(mark)]
        assert len(podman.names()) == 1
    assert podman.names() == []


async def test_the_next_node_agent_adopts_the_container(node: Node, house: ContainerHouse, podman: Podman) -> None:
    async with ready(node, house, want(podman), is_left_running=True) as (_, first):
        pass
    assert await house.sweep(node.data_dir / "replicas") == 0
    async with ready(node, house, want(podman)) as (_, again):
        assert (again.pid, again.port, again.incarnation) == (first.pid, first.port, 1)
        assert (await asyncio.to_thread(ask, again.port))[0] == 200


async def test_a_sweep_removes_what_nobody_keeps_and_only_ours(
    node: Node, house: ContainerHouse, podman: Podman
) -> None:
    for name, key in ((f"slice-{house.key}-rep_gone", house.key), ("slice-other-rep_x", "other"), ("stranger", "")):
        labels = ["--label", f"slice.node={key}"] if key else []
        done = podman.run("create", "--name", name, *labels, podman.reference, "python3")
        assert done.returncode == 0, done.stderr
    assert await house.sweep(node.data_dir / "replicas") == 1
    assert sorted(podman.names()) == ["slice-other-rep_x", "stranger"]
    podman.run("rm", "--all", "--force")


async def test_a_client_that_leaves_is_gone_for_the_engine_too(
    node: Node, house: ContainerHouse, podman: Podman
) -> None:
    wanted = want(podman, tokens=100_000, token_delay_ms=20.0)
    async with ready(node, house, wanted) as (_, report):
        reader, writer = await asyncio.open_connection("127.0.0.1", report.port)
        body = json.dumps({"model": "demo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
        head = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Authorization: Bearer secret"]
        writer.write("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        await reader.readuntil(b"data:")
        assert await running_requests(report.port) == 1
        writer.transport.abort()

        async def is_idle() -> None:
            while await running_requests(report.port):
                await asyncio.sleep(0.02)

        async with asyncio.timeout(2):
            await is_idle()


async def running_requests(port: int) -> int:
    def page() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/metrics", headers={"authorization": "Bearer secret"})
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    text = await asyncio.to_thread(page)
    (line,) = [line for line in text.splitlines() if line.startswith("fake:requests_processing")]
    return int(float(line.split()[1]))


async def test_an_image_that_is_not_here_fails_for_good_and_says_how_to_bring_it(
    node: Node, house: ContainerHouse, podman: Podman
) -> None:
    wanted = want(podman)
    wanted.image = f"localhost/none@sha256:{'0' * 64}"
    async with runner_of(node, lambda: 0.5, want=wanted, containers=house) as runner, running(runner):
        await trees.until(lambda: runner.state is ReplicaState.FAILED, 20)
        assert runner.report().code == "container.image_not_found"
        assert "podman pull" in runner.report().message


async def test_a_node_without_a_container_program_says_so(node: Node, podman: Podman) -> None:
    async with runner_of(node, lambda: 0.5, want=want(podman)) as runner, running(runner):
        await trees.until(lambda: runner.state is ReplicaState.FAILED, 20)
        assert runner.report().code == "container.unavailable"


async def test_a_real_llamacpp_reads_its_model_from_a_read_only_mount(
    node: Node, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The engine that `RunningEngine` starts as a process, from an image that holds its package and our launcher."""
    python = Path(engine_python(adapter("llamacpp")))
    (package,) = python.parents[1].glob("lib/python3.*/site-packages/xllamacpp")
    if package.parent.parent.name != PYTHON.resolve().name:
        pytest.skip(f"xllamacpp is built for {package.parent.parent.name}, the image has {PYTHON.resolve().name}")
    podman = Podman(tmp_path_factory.mktemp("podman-llama"))
    try:
        launcher = ROOT / "adapters/llamacpp/program/serve.py"
        await asyncio.to_thread(podman.make_image, {"/opt/slice/llamacpp/serve.py": launcher}, package)
        house = house_of(node, podman)
        await house.look()
        model = write_random_llama(node.tmp_path / "random.gguf", seed=7, context=512)
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        wanted = want(podman, context=512, slots=1)
        wanted.engine, wanted.engine_version = "llamacpp", adapter("llamacpp").default_version
        wanted.devices[0].bytes = 512 * 1024**2
        wanted.files.add(source=f"file:{model}", sha256=digest, size_bytes=model.stat().st_size, path="random.gguf")
        async with ready(node, house, wanted) as (_, report):
            status, text = await asyncio.to_thread(ask, report.port, max_tokens=4)
            assert (status, json.loads(text)["usage"]["completion_tokens"] > 0) == (200, True)
            code = "open('/slice/model/other.gguf', 'wb')"
            assert "Read-only file system" in await asyncio.to_thread(inside, podman, code)
    finally:
        podman.close()
