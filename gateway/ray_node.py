"""Ray on one host, as small and as closed as it goes: environment, processes, ports.

Comes in: a `DoorConfig`. Goes out: the environment to set before `import ray`, and a running single-node Ray. Called by
`serve_host` only. It must leave no port outside loopback (but the front end's) and put nothing durable into Ray.

Why Ray's inner `Node` and not `ray.init()` or `ray start`: `ray.init` cannot place most ports and always starts a
dashboard head, a log monitor and an autoscaler monitor (3 processes, about 240 MB); `ray start` leaves its processes
detached from us and costs another second. Ray is pinned in constraints.txt; the system test notices a change.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import Failure
from core.infra.cluster import make_private_dir, write_private
from gateway import haproxy
from gateway.config import DoorConfig

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 80_000_000
"""Smallest that Ray accepts is 75 MiB; nothing of ours goes through it, so its pages are never touched."""
LONGEST_STREAM_S = 3600
"""How long an old HAProxy keeps its streams after a reload; Serve's default of 120 s would cut long answers."""
KEPT_SESSIONS = 2
HAPROXY_CHECK_S = 0.5
"""Time between Serve's looks at HAProxy, which it replaces after three misses; its default of 10 s leaves half a minute
without a door. A miss is an admin socket that nobody listens on or no answer in 5 s: never a door that is only busy."""
_RAY_TEMP = "t"  # Ray makes its own folder 0777, so it is one below ours, which stays 0700
_LONGEST_RAY_DIR = 38
"""HAProxy's socket path is RAY_DIR/<56 characters>/s plus ten while it binds, and must stay under 107 bytes."""


def environment(config: DoorConfig, *, cpu_count: int, open_files: int) -> Mapping[str, str]:
    """Return the variables that Ray and Serve read at import; every path and port is this cluster's own.

    `open_files` is the hard limit of this process (RLIMIT_NOFILE); HAProxy refuses to start when it is too low.
    """
    ports, ray_dir = config.ports, Path(config.ray_dir)
    return {
        # Without this Ray turns 127.0.0.1 into the host's outer address and listens on all interfaces.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": config.ray_token_file,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_METRICS_COLLECTION": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_GCS_SERVER_PORT": str(ports["ray_gcs"]),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",  # the inner gRPC server is closed, see deployment.close_inner_port
        "RAY_SERVE_HTTP_KEEP_ALIVE_TIMEOUT_S": "90",  # above HAProxy's 5 s of idle, so it never meets a closed one
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports["serve_fallback_http"]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports["serve_fallback_grpc"]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports["serve_replica_http_first"]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports["serve_replica_http_last"]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports["serve_replica_grpc_first"]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports["serve_replica_grpc_last"]),
        "RAY_SERVE_PORT_QUARANTINE_S": "1",  # all these ports are ours: an old HAProxy finds a door behind each
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(ray_dir / "haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(ray_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(ray_dir / "s"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(ray_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(ray_dir / "state"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # one syslog datagram a request, parsed in Python
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["serve_haproxy_metrics"]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["serve_haproxy_stats"]),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_STREAM_S),
        "RAY_SERVE_HAPROXY_MAXCONN": str(max(100, min(20_000, (open_files - 500) * 2 // 5))),
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(HAPROXY_CHECK_S),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, cpu_count)),
    }


def prepare(config: DoorConfig, haproxy_binary: str, python: str) -> Path:
    """Make Ray's directory ready: old sessions removed, HAProxy's wrapper and error files written.

    Returns the path of the door's configuration for the replicas (0600).

    Raises:
        Failure: `cluster.path_too_long` or `cluster.data_dir_unusable`.
    """
    ray_dir = Path(config.ray_dir)
    if len(str(ray_dir)) > _LONGEST_RAY_DIR:
        raise Failure(
            "cluster.path_too_long",
            f"sockets of HAProxy below {ray_dir} would pass 107 bytes",
            hint="set SLICE_RUNTIME_DIR to a shorter directory, e.g. /run",
        )
    make_private_dir(ray_dir)
    make_private_dir(Path(config.log_dir))
    make_private_dir(Path(config.table_file).parent)
    sessions = sorted(
        path for path in (ray_dir / _RAY_TEMP).glob("session_*") if path.is_dir() and not path.is_symlink()
    )
    for old in sessions[: max(0, len(sessions) - KEPT_SESSIONS)]:
        shutil.rmtree(old, ignore_errors=True)
    for old in ray_dir.glob("[0-9a-f]" * 56):  # HAProxy's folders, one per start, named by Ray's node id
        shutil.rmtree(old, ignore_errors=True)
    for socket in ray_dir.glob("inner-*.sock"):
        socket.unlink(missing_ok=True)
    errors = ray_dir / "errors"
    make_private_dir(errors)
    for name, text in haproxy.error_files().items():
        (errors / name).write_bytes(text.encode())
    wrapper = ray_dir / "haproxy"
    write_private(wrapper, haproxy.wrapper_text(python, haproxy_binary, config.host, str(errors)))
    wrapper.chmod(0o700)
    file = ray_dir / "door.json"
    write_private(file, config.to_json())
    return file


def start(config: DoorConfig) -> Any:
    """Start Ray's processes and connect to them; returns Ray's `Node`, which `stop` takes.

    The children get SIGKILL from the kernel when this process dies (PR_SET_PDEATHSIG). Imports Ray here, because it
    reads its environment at import.
    """
    import ray
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class LeanNode(Node):
        """A head without the dashboard's head process (85 MB), whose only user is the dashboard."""

        def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
            """Start nothing."""

    node = LeanNode(RayParams(**_parameters(config)), head=True, shutdown_at_exit=False, spawn_reaper=True)
    ray.init(address=f"{LOOPBACK}:{config.ports['ray_gcs']}", log_to_driver=False, logging_level=logging.ERROR)
    return node


def _parameters(config: DoorConfig) -> dict[str, Any]:
    ports = config.ports
    return {
        "node_ip_address": LOOPBACK,
        "num_cpus": 1,  # every actor of ours and Serve's asks for 0; this is how many workers are started ahead
        "num_gpus": 0,
        "object_store_memory": OBJECT_STORE_BYTES,
        "temp_dir": str(Path(config.ray_dir) / _RAY_TEMP),
        "include_dashboard": False,
        "include_log_monitor": False,
        "no_monitor": True,
        "gcs_server_port": ports["ray_gcs"],
        "node_manager_port": ports["ray_node_manager"],
        "object_manager_port": ports["ray_object_manager"],
        "dashboard_port": ports["ray_dashboard"],
        "dashboard_agent_listen_port": ports["ray_dashboard_agent"],
        "metrics_agent_port": ports["ray_dashboard_agent_grpc"],
        "runtime_env_agent_port": ports["ray_runtime_env_agent"],
        "metrics_export_port": ports["ray_metrics_export"],
    }


def core_pids(node: Any) -> Mapping[str, int]:
    """Return the pids of the two processes without which Ray is lost."""
    return {name: node.all_processes[name][0].process.pid for name in ("gcs_server", "raylet")}


def apply(variables: Mapping[str, str]) -> None:
    """Set `variables` in this process: Ray reads nothing else, and its children inherit them."""
    os.environ.update(variables)  # noqa: TID251 - writing what Ray reads; ours is read in core.infra.settings
