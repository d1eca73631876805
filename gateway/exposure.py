"""Which ports a front door opens, on which address and why: data for `slice doctor` and for the tests.

Comes in: the resolved ports. Goes out: `OpenPort` values. Pure; found by listing the sockets of a running door (Ray
2.60.0), see design.md. It must be kept true: `tests/gateway/test_serve_host.py` compares it with a real door.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OpenPort:
    """One listening TCP port, or one of a range; 0 means that the kernel chooses. `guard` keeps strangers out."""

    port: int
    last_port: int
    address: str
    process: str
    purpose: str
    guard: str


_RAY = "Ray's token on every call"


def expected_open_ports(*, host: str, port: int, replicas: int, ports: Mapping[str, int]) -> tuple[OpenPort, ...]:
    """Return every port that a running door listens on; only the front end is ever beyond loopback."""
    fixed = [
        (ports["ray_gcs"], "gcs_server", "Ray's cluster state", _RAY),
        (ports["ray_node_manager"], "raylet", "Ray's scheduler", _RAY),
        (ports["ray_object_manager"], "raylet", "Ray's object store", _RAY),
        (ports["ray_dashboard_agent"], "ray::DashboardAgent", "Ray's agent, HTTP", _RAY),
        (ports["ray_dashboard_agent_grpc"], "ray::DashboardAgent", "Ray's agent, gRPC", _RAY),
        (ports["ray_runtime_env_agent"], "ray::RuntimeEnvAgent", "Ray's environments", _RAY),
        (ports["serve_fallback_http"], "ray::ProxyActor", "Serve's spare way to the app", "API keys, as the front end"),
    ]
    first, last = ports["serve_replica_http_first"], ports["serve_replica_http_last"]
    spans = [(number, number, process, purpose, guard) for number, process, purpose, guard in fixed]
    spans += [(first, last, "ray::ServeReplica", "a door behind HAProxy", "API keys")] * replicas
    spans += [(0, 0, name, "Ray's calls to one process", _RAY) for name in ("ray::*", "the door's host process")]
    return (
        OpenPort(
            port=port, last_port=port, address=host, process="haproxy", purpose="the OpenAI API", guard="API keys"
        ),
        *(
            OpenPort(port=low, last_port=high, address="127.0.0.1", process=process, purpose=purpose, guard=guard)
            for low, high, process, purpose, guard in spans
        ),
    )
