"""The controller's two servers: HTTP on a TCP port bound by us, gRPC on a 0600 unix socket.

Called by `controller.process`. Binding first and serving later turns a taken port into a `Failure` instead of the
`sys.exit` that uvicorn answers it with.
"""

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import uvicorn

from controller.api.gate import App
from controller.api.node_servicer import NodeServicer
from controller.api.routes_servicer import RoutesServicer
from core.errors import Failure
from core.infra.grpc import SERVER_OPTIONS, BearerGate
from protos.slice.node.v1 import node_pb2_grpc
from protos.slice.routes.v1 import routes_pb2_grpc

NODE_SERVICE = "slice.node.v1.NodeControl"
ROUTES_SERVICE = "slice.routes.v1.Routes"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process's own stop event ends it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class HttpServer:
    """The admin API on one TCP port."""

    def __init__(self, app: App, *, host: str, port: int) -> None:
        self._socket = _bound(host, port)
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            timeout_keep_alive=30,
        )
        self._server = _Server(config)

    @property
    def port(self) -> int:
        """The port it is bound to."""
        return int(self._socket.getsockname()[1])

    async def serve(self) -> None:
        """Serve until `stop`."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Ask `serve` to end; open streams get one second."""
        self._server.should_exit = True

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, event loops set TCP_NODELAY on what it accepts; without, each answer waits 40 ms for an
    # acknowledgement (Nagle against delayed ACK).
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise Failure(
            "cluster.port_taken",
            f"the admin API cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}",
            hint="choose another with --controller-port, or end the program that has it",
        ) from error
    return listener


class ControlSocket:
    """The gRPC services of nodes and doors on a unix socket that only this user can open."""

    def __init__(self, path: Path, *, node_token: str, door_token: str) -> None:
        self._path = path
        gate = BearerGate({NODE_SERVICE: node_token, ROUTES_SERVICE: door_token})
        self._server = grpc.aio.server(interceptors=[gate], options=SERVER_OPTIONS)

    def add(self, *, nodes: NodeServicer, routes: RoutesServicer) -> None:
        """Serve these services."""
        node_pb2_grpc.add_NodeControlServicer_to_server(nodes, self._server)  # type: ignore[no-untyped-call]
        routes_pb2_grpc.add_RoutesServicer_to_server(routes, self._server)  # type: ignore[no-untyped-call]

    async def start(self) -> None:
        """Listen.

        Raises:
            Failure: `cluster.data_dir_unusable` when the socket cannot be made.
        """
        try:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
            # Born 0600: the mask is set around the bind, which gRPC does inside add_insecure_port.
            before = os.umask(0o177)
            try:
                self._server.add_insecure_port(f"unix:{self._path}")
            finally:
                os.umask(before)
            await self._server.start()
            await asyncio.to_thread(self._path.chmod, 0o600)
        except (OSError, RuntimeError) as error:
            raise Failure(
                "cluster.data_dir_unusable",
                f"the control socket {self._path} cannot be made",
                hint="see `slice doctor`",
            ) from error

    async def stop(self) -> None:
        """End all streams; they get half a second."""
        await self._server.stop(0.5)
        await asyncio.to_thread(self._path.unlink, missing_ok=True)


def claimed(path: Path) -> int:
    """Return a descriptor that holds the lock beside the control socket, so that one controller at a time has it.

    Raises:
        Failure: `cluster.port_taken` while another controller of this cluster lives on this host.
    """
    try:
        handle = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure(
            "cluster.data_dir_unusable", f"{path.parent} cannot be used: {os.strerror(error.errno or 0)}"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise Failure(
            "cluster.port_taken", f"another controller holds {path}", hint="end it first; `slice down` does"
        ) from error
    return handle
