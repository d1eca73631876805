"""A small controller that speaks NodeControl on a unix socket: it remembers what it hears and sends what it is told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from core.infra.grpc import SERVER_OPTIONS, BearerGate
from protos.slice.node.v1 import node_pb2, node_pb2_grpc

TOKEN = "node-token"


class Controller(node_pb2_grpc.NodeControlServicer):
    """One controller for one node, by default one of the release before; `acks` off makes it deaf.

    `reads_telemetry` off lets its line fill up; `peers` are who called which method last.
    """

    def __init__(self) -> None:
        self.hellos: list[node_pb2.Hello] = []
        self.beats: list[node_pb2.Heartbeat] = []
        self.observed: list[node_pb2.Observed] = []
        self.goodbyes: list[node_pb2.Goodbye] = []
        self.log_chunks: list[node_pb2.LogChunk] = []
        self.ended_sessions = 0
        self.acks = True
        self.leader_epoch = 1
        self.heartbeat_ms = 200
        self.lease_ms = 1500
        self.fence_ms = 0
        self.protocol = 0
        self.telemetry_ms = 50
        self.telemetry: list[node_pb2.Telemetry] = []
        self.peers: dict[str, str] = {}
        self.reads_telemetry = True
        self.reject: node_pb2.Reject | None = None
        self.desired: node_pb2.Desired | None = None
        self._links: set[Any] = set()
        self._cut = asyncio.Event()

    async def Session(self, requests: AsyncIterator[node_pb2.NodeMessage], context: Any) -> None:
        lock = asyncio.Lock()
        self.peers["Session"] = context.peer()

        async def send(**body: Any) -> None:
            async with lock:
                await context.write(node_pb2.ControllerMessage(**body))

        self._links.add(send)
        try:
            async for message in requests:
                await self._hear(message, send)
        finally:
            self._links.discard(send)
            self.ended_sessions += 1

    async def _hear(self, message: node_pb2.NodeMessage, send: Any) -> None:
        match message.WhichOneof("body"):
            case "hello":
                self.hellos.append(message.hello)
                self.observed.append(message.hello.observed)
                if self.reject is not None:
                    await send(reject=self.reject)
                    return
                await send(
                    hello_ack=node_pb2.HelloAck(
                        leader_epoch=self.leader_epoch,
                        session_epoch=len(self.hellos),
                        heartbeat_ms=self.heartbeat_ms,
                        lease_ms=self.lease_ms,
                        fence_ms=self.fence_ms,
                        protocol=self.protocol,
                        telemetry_ms=self.telemetry_ms if self.protocol else 0,
                    )
                )
                if self.desired is not None:
                    await send(desired=self.desired)
            case "heartbeat":
                self.beats.append(message.heartbeat)
                if self.acks:
                    await send(heartbeat_ack=node_pb2.HeartbeatAck(sequence=message.heartbeat.sequence))
            case "observed":
                self.observed.append(message.observed)
            case "goodbye":
                self.goodbyes.append(message.goodbye)

    async def SendLog(self, requests: AsyncIterator[node_pb2.LogChunk], context: Any) -> node_pb2.LogReceipt:
        async for chunk in requests:
            self.log_chunks.append(chunk)
        return node_pb2.LogReceipt()

    async def SendTelemetry(
        self, requests: AsyncIterator[node_pb2.Telemetry], context: Any
    ) -> node_pb2.TelemetryReceipt:
        self.peers["SendTelemetry"] = context.peer()
        reading, cut = asyncio.ensure_future(self._read(requests)), asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait({reading, cut}, return_when=asyncio.FIRST_COMPLETED)
            if cut.done():
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            await reading
        finally:
            reading.cancel()
            cut.cancel()
        return node_pb2.TelemetryReceipt()

    async def _read(self, requests: AsyncIterator[node_pb2.Telemetry]) -> None:
        async for message in requests:
            self.telemetry.append(message)
            if not self.reads_telemetry:
                await asyncio.Event().wait()

    def cut_telemetry(self) -> None:
        """Break every call that brings readings."""
        self._cut.set()
        self._cut = asyncio.Event()

    async def tell(self, **body: Any) -> None:
        """Send a message on every stream."""
        for send in list(self._links):
            await send(**body)

    async def want(self, desired: node_pb2.Desired) -> None:
        """Make `desired` the node's desired set, now and at each hello."""
        self.desired = desired
        await self.tell(desired=desired)

    def replica(self, replica_id: str) -> node_pb2.ReplicaReport | None:
        """Return the newest report of a replica."""
        reports = self.observed[-1].replicas if self.observed else []
        return next((report for report in reports if report.replica_id == replica_id), None)

    def file(self, want_id: str) -> node_pb2.FileReport | None:
        """Return the newest report of a pull."""
        reports = self.observed[-1].files if self.observed else []
        return next((report for report in reports if report.want_id == want_id), None)


@contextlib.asynccontextmanager
async def serving(socket_path: Path, controller: Controller, *, address: str = "") -> AsyncIterator[Controller]:
    """Serve `controller` on a unix socket, and at `address` if there is one, behind the same gate as the real one."""
    server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[BearerGate({"slice.node.v1.NodeControl": TOKEN})])
    node_pb2_grpc.add_NodeControlServicer_to_server(controller, server)
    server.add_insecure_port(f"unix:{socket_path}")
    if address:
        server.add_insecure_port(address)
    await server.start()
    try:
        yield controller
    finally:
        await server.stop(0)
