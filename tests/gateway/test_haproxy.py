"""The configuration that Serve writes for HAProxy, after we have been over it; and Ray's environment."""

import subprocess
import sys
from pathlib import Path

from core.infra.cluster import PORTS
from gateway import haproxy, ray_node
from tests.gateway.conftest import door_config

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
    errorfile 502 /r/500.http
    balance leastconn
frontend prometheus
    bind :9101
    mode http
    no log
frontend http_frontend
    bind 127.0.0.1:7080
    acl healthcheck path -i /-/healthz
    use_backend http-door if is_http-door
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
    for kept in ("maxconn 4096", "server a 127.0.0.1:30000 check", "use_backend http-door if is_http-door"):
        assert kept in lines


def test_a_second_pass_changes_nothing() -> None:
    once = haproxy.hardened(WRITTEN, "0.0.0.0", "/e")
    assert haproxy.hardened(once, "0.0.0.0", "/e") == once


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
