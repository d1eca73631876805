"""The door as a Ray Serve deployment: Serve starts, watches and restarts it; nothing durable lives in it.

Comes in: the path of the door's configuration (0600; secrets stay out of Ray's own store). Goes out: a Serve
application for `serve_host`. Imported in the host process after Ray's environment is set, and in every replica. It must
not route by Serve's means: one raw ASGI callable, no FastAPI.
"""

import os
from pathlib import Path
from typing import Any

import grpc
from ray import serve
from ray.serve._private import replica as serve_replica

from adapters import registry
from core.infra.clock import SystemClock
from core.infra.logs import Log
from gateway.app import DoorApp
from gateway.chance import system_chance
from gateway.config import DoorConfig
from gateway.door import Door

NAME = "door"
MAX_ONGOING_REQUESTS = 20_000
"""Requests that one replica works on at a time; far above what one core carries, so Serve never queues by itself."""
SHUTDOWN_S = 30.0
"""How long Serve lets streams end when it replaces a replica, seconds."""


class ServeDoor:
    """What Serve instantiates in a replica; Serve runs the app's lifespan, which starts the watch."""

    def __init__(self, config_file: str) -> None:
        config = DoorConfig.from_json(Path(config_file).read_text())
        close_inner_port(Path(config.ray_dir))
        clock = SystemClock()
        # Events only, a few a day; line-buffered, so that replicas share the file whole line by whole line.
        stream = Path(config.log_dir, "door.jsonl").open("a", buffering=1)  # noqa: SIM115 - open for the process's life
        dialects = {adapter.name: adapter.dialect for adapter in registry.adapters()}
        self._door = Door(
            config,
            dialect_of=dialects.get,
            clock=clock,
            log=Log("door", clock, stream),
            chance=system_chance(),
        )

    def __serve_build_asgi_app__(self) -> DoorApp:
        """Return the app; called by Serve after the constructor."""
        return self._door.app

    def check_health(self) -> None:
        """Tell Serve to replace this replica when a background task has ended.

        Raises:
            RuntimeError: the door no longer hears the controller for good.
        """
        if self._door.has_failed:
            raise RuntimeError("a background task of the door has ended")


def close_inner_port(directory: Path) -> None:
    """Put the replica's inner gRPC server on a unix socket in a 0700 directory instead of a TCP port on all interfaces.

    Serve 2.60 opens `[::]:0` without credentials in every replica and unpickles what arrives there
    (ray/serve/_private/replica.py, `_on_initialized`): code execution for anybody who reaches the port. Our door calls
    no other deployment and none calls it, so the server may listen where nobody comes. It offers no setting for it.
    """

    def on_socket(server: grpc.aio.Server, _: str) -> int:
        path = directory / f"inner-{os.getpid()}.sock"
        server.add_insecure_port(f"unix:{path}")  # the directory is 0700
        return 1

    serve_replica.add_port_to_grpc_server = on_socket  # type: ignore[attr-defined]  # re-exported from tls_utils


def application(config_file: Path, *, replicas: int) -> Any:
    """Return the Serve application: a fixed number of replicas, because a change reloads HAProxy."""
    ingress = serve.ingress()(ServeDoor)
    deployment: Any = serve.deployment(
        ingress,
        name="Door",
        num_replicas=replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        health_check_period_s=5,
        logging_config={"enable_access_log": False, "log_level": "ERROR"},
        ray_actor_options={"num_cpus": 0},
    )
    return deployment.bind(str(config_file))
