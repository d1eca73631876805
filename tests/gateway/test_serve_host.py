"""The real thing: Ray, Serve and HAProxy in processes of their own, a scripted engine behind them."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import pytest

from core.infra import processes
from core.infra.cluster import PORTS, PORTS_PER_CLUSTER
from gateway import serve_host
from gateway.config import DoorConfig
from gateway.exposure import expected_open_ports
from gateway.table import save_copy
from protos.slice.routes.v1 import routes_pb2
from tests.gateway.conftest import (
    KEY,
    PEPPER,
    TOKEN,
    RoutesServer,
    door_config,
    key_entry,
    route,
    serving_routes,
    target,
)
from tests.gateway.raw import call, request_bytes
from tests.gateway.scripted import Exchange, ScriptedEngine, answering, chat_chunk
from tests.waiting import until, until_async

pytestmark = pytest.mark.system

HOST = "import sys; from pathlib import Path; from gateway.serve_host import DoorConfig, main; "
HOST += "sys.exit(main(DoorConfig.from_json(Path(sys.argv[1]).read_text())))"
ASKED = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


def free_block() -> int:
    """Return the base of a range of ports of which none is taken, below the kernel's ephemeral range."""
    for base in range(26100, 31000, PORTS_PER_CLUSTER):
        try:
            for port in range(base, base + PORTS_PER_CLUSTER):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("no free block of ports")


@dataclass
class HostedDoor:
    config: DoorConfig
    process: subprocess.Popen
    directory: Path
    engine_port: int
    took_s: float

    def family(self) -> list[psutil.Process]:
        marks = processes.family(frozenset({self.process.pid}))
        return [psutil.Process(mark.pid) for mark in marks]

    def named(self, start: str) -> psutil.Process:
        return next(one for one in self.family() if " ".join(one.cmdline()).startswith(start))


def listening(one: psutil.Process) -> set[tuple[str, int]]:
    """Return where a process listens; nowhere when it has just ended, as an old HAProxy does after a reload."""
    try:
        links = one.net_connections(kind="inet")
    except psutil.NoSuchProcess:
        return set()
    return {
        (link.laddr.ip.removeprefix("::ffff:"), link.laddr.port) for link in links if link.status == psutil.CONN_LISTEN
    }


def is_haproxy(one: psutil.Process) -> bool:
    try:
        return Path((one.cmdline() or [""])[0]).name == "haproxy"
    except psutil.NoSuchProcess:
        return False


def start_door() -> HostedDoor:
    directory = Path(tempfile.mkdtemp(prefix="sgw-", dir="/tmp"))
    base = free_block()
    (directory / "token").write_text("a" * 64)
    (directory / "token").chmod(0o600)
    config = DoorConfig(
        cluster_id="clu_1",
        door_id_prefix="door",
        host="127.0.0.1",
        port=base + 30,
        replicas=1,
        control_target=f"unix:{directory}/control.sock",
        token=TOKEN,
        key_pepper_hex=PEPPER.hex(),
        table_file=str(directory / "door" / "routes.json"),
        body_limit_bytes=1024**2,
        first_byte_timeout_s=10.0,
        idle_timeout_s=10.0,
        ray_dir=str(directory / "ray"),
        ray_token_file=str(directory / "token"),
        ports={name: base + offset for name, offset in PORTS.items()},
        log_dir=str(directory / "logs"),
        version="0",
    )
    (directory / "config.json").write_text(config.to_json())
    table = routes_pb2.RouteTable(version=5, routes=[route(target(base + 31))], keys=[key_entry()])
    Path(config.table_file).parent.mkdir()
    save_copy(Path(config.table_file), table)
    began = time.monotonic()
    with (directory / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", HOST, str(directory / "config.json")],
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    line = process.stdout.readline()
    assert json.loads(line or "{}") == {"ready": True}, (directory / "stderr").read_text()
    return HostedDoor(config, process, directory, base + 31, time.monotonic() - began)


def clean_up(door: HostedDoor, marks: list[psutil.Process]) -> None:
    door.process.kill()
    door.process.wait(5)
    door.process.stdout.close()
    for one in marks:
        try:
            one.kill()  # psutil checks the start time
        except psutil.NoSuchProcess:
            continue
    shutil.rmtree(door.directory, ignore_errors=True)


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedDoor]:
    door = start_door()
    marks = door.family()
    try:
        yield door
        marks = door.family()
        door.process.send_signal(signal.SIGTERM)
        assert door.process.wait(10) == 0
        until(lambda: not any(one.is_running() for one in marks), 5, "the tree's end")
    finally:
        clean_up(door, marks)


async def test_a_real_door_answers_and_streams_from_its_last_copy(hosted: HostedDoor) -> None:
    async with ScriptedEngine(answering, port=hosted.engine_port) as engine:
        url = f"http://127.0.0.1:{hosted.config.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            answer = await client.chat.completions.create(**ASKED)
            chunks = [chunk async for chunk in await client.chat.completions.create(**ASKED, stream=True)]
        assert answer.choices[0].message.content == "hello"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"
        raw = await call(hosted.config.port, "POST", CHAT, ASKED, {"x-request-id": "forged"})
    ids = [value for name, value in raw.headers if name == "x-request-id"]
    assert len(ids) == 1
    assert ids[0] != "forged"
    assert engine.exchanges[-1].headers["x-request-id"] == ids[0]


async def test_leaving_through_haproxy_frees_the_engine_at_once(hosted: HostedDoor) -> None:
    async def hanging(exchange: Exchange) -> None:
        if exchange.json.get("stream"):
            await exchange.begin_stream()
            await exchange.chunk(chat_chunk("Hel"))
        await exchange.closed.wait()

    for is_stream in (True, False):
        async with ScriptedEngine(hanging, port=hosted.engine_port) as engine:
            reader, writer = await asyncio.open_connection("127.0.0.1", hosted.config.port)
            writer.write(request_bytes("POST", CHAT, json.dumps({**ASKED, "stream": is_stream}).encode()))
            async with asyncio.timeout(5):
                await engine.arrived.wait()
                if is_stream:
                    await reader.readuntil(b"Hel")
            writer.transport.abort()
            async with asyncio.timeout(1):
                await engine.exchanges[0].closed.wait()


async def test_errors_of_haproxy_and_of_serve_never_reach_a_client_as_text(hosted: HostedDoor) -> None:
    for method, path, headers in (
        ("GET", "/nowhere", {}),
        ("POST", CHAT, {"authorization": None}),
        ("POST", CHAT, {"x-request-timeout-seconds": "0.0001"}),
    ):
        answer = await call(hosted.config.port, method, path, ASKED if method == "POST" else b"", headers)
        assert answer.header("content-type") == "application/json"
        assert set(answer.error) == {"message", "type", "param", "code"}


async def test_a_real_door_listens_where_it_says_and_nowhere_else(hosted: HostedDoor) -> None:
    config = hosted.config
    said = expected_open_ports(host=config.host, port=config.port, replicas=config.replicas, ports=config.ports)
    fixed = {one.port for one in said if one.port == one.last_port} - {0}
    doors = {port for one in said if one.port < one.last_port for port in range(one.port, one.last_port + 1)}
    found = {address for one in hosted.family() for address in listening(one)}
    assert {address for address, _ in found} == {"127.0.0.1"}
    assert fixed <= {port for _, port in found}
    assert len({port for _, port in found} & doors) == config.replicas
    strange = {port for _, port in found} - fixed - doors
    assert not strange & set(config.ports.values())  # the rest are Ray's workers on ports of the kernel's choice
    for socket_file in Path(config.ray_dir).glob("**/s"):
        assert socket_file.stat().st_mode & 0o077 == 0
    assert Path(config.ray_dir).stat().st_mode & 0o077 == 0


async def test_a_real_door_reports_to_its_controller(hosted: HostedDoor) -> None:
    routes = RoutesServer()
    routes.table.version = 10
    async with serving_routes(hosted.directory / "control.sock", routes):
        await routes.applied(routes.push(route(target(hosted.engine_port))))
        answer = await call(hosted.config.port, "GET", "/health")
    assert json.loads(answer.body)["table_version"] == 11


async def test_serve_replaces_a_door_that_dies(hosted: HostedDoor) -> None:
    hosted.named("ray::ServeReplica").kill()

    async def answers() -> bool:
        async with ScriptedEngine(answering, port=hosted.engine_port):
            try:
                return (await call(hosted.config.port, "POST", CHAT, ASKED)).status == 200
            except (OSError, asyncio.IncompleteReadError):
                return False

    await until_async(answers, 20)


async def test_a_killed_haproxy_is_replaced_soon_and_no_client_is_told_to_give_up(hosted: HostedDoor) -> None:
    killed = [one for one in hosted.family() if is_haproxy(one)]
    for one in killed:
        one.kill()
    began = time.monotonic()

    async def answers() -> bool:
        try:
            answer = await call(hosted.config.port, "GET", "/v1/models")
        except (OSError, asyncio.IncompleteReadError):
            return False  # nobody listens: an SDK tries again
        assert answer.header("content-type") == "application/json"
        assert answer.status in (200, 503)
        return answer.status == 200

    await until_async(answers, 20)
    assert time.monotonic() - began < 8  # 3.2 s on a quiet machine; 15 s and a redeploy before
    assert hosted.process.poll() is None
    assert not {one.pid for one in killed} & {one.pid for one in hosted.family() if is_haproxy(one)}


def test_the_host_is_small_and_ready_soon(hosted: HostedDoor) -> None:
    pss_bytes = sum(one.memory_full_info().pss for one in hosted.family())
    assert pss_bytes < 900_000_000
    assert hosted.took_s < 30  # 5.5 s on a quiet machine, see gateway/design.md


def test_a_taken_port_is_told_before_ray_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = DoorConfig(**{**door_config(tmp_path).__dict__, "port": taken.getsockname()[1]})
        (tmp_path / "config.json").write_text(config.to_json())
        done = subprocess.run(
            [sys.executable, "-c", HOST, str(tmp_path / "config.json")], capture_output=True, text=True, timeout=20
        )
    said = json.loads(done.stdout)
    assert (done.returncode, said["ready"], said["error"]["code"]) == (1, False, "cluster.port_taken")


def test_a_host_whose_gcs_dies_ends_with_redeploy_at_once() -> None:
    door = start_door()
    marks = door.family()
    try:
        gcs = next(one for one in marks if "gcs_server" in " ".join(one.cmdline()))
        os.kill(gcs.pid, signal.SIGKILL)
        began = time.monotonic()
        assert door.process.wait(5) == serve_host.EXIT_REDEPLOY
        assert time.monotonic() - began < 3
    finally:
        clean_up(door, marks)
