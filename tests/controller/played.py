"""A node and a door, played over real gRPC: they do what a test tells them and remember what they were told."""

import asyncio
import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from core.infra.grpc import CHANNEL_OPTIONS, bearer
from protos.slice.node.v1 import node_pb2 as node
from protos.slice.node.v1 import node_pb2_grpc
from protos.slice.routes.v1 import routes_pb2 as routes
from protos.slice.routes.v1 import routes_pb2_grpc
from tests.controller.cluster import DOOR, NODE
from tests.waiting import until_async

GIB = 1024**3


class PlayedNode:
    """A node agent whose replicas go where the test says; `obeys` makes it start and stop them by itself."""

    def __init__(
        self, socket: Path, *, node_id: str = "nod_1", name: str = "box", machine_id: str = "m1", obeys: bool = True
    ) -> None:
        self._socket = socket
        self.node_id, self.name, self.machine_id = node_id, name, machine_id
        self.obeys = obeys
        self.generation = 0
        self.replicas: dict[str, node.ReplicaReport] = {}
        self.files: dict[str, node.FileReport] = {}
        self.engines: list[node.EngineFact] = []
        self.desired: list[node.Desired] = []
        self.acks: list[int] = []
        self.logs: list[node.LogRequest] = []
        self.reject: node.Reject | None = None
        self.ack: node.HelloAck | None = None
        self.protocol = (1, 1)  # the release before, unless a test says otherwise
        self.revoked: list[frozenset[str]] = []
        self.is_beating = True
        self.max_epoch = 0
        self.plane = ("", 0)
        self.disk_free_bytes = 50 * GIB
        self.sequence = 0
        self._channel: Any = None
        self._call: Any = None
        self._writing = asyncio.Lock()  # gRPC takes one write at a time
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "PlayedNode":
        await self.dial()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.hang_up()

    async def dial(self) -> None:
        """Connect, say hello, and beat."""
        self.sequence = 0
        self._channel = self.channel()
        stub: Any = node_pb2_grpc.NodeControlStub(self._channel)
        self._call = stub.Session(metadata=bearer(NODE))
        await self.say(node.NodeMessage(hello=self.hello()))
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]

    def channel(self) -> Any:
        """Return a channel to the controller."""
        return grpc.aio.insecure_channel(f"unix:{self._socket}", options=CHANNEL_OPTIONS)

    async def hang_up(self) -> None:
        """Drop the stream without a word."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()
        await self._channel.close()

    @property
    def stream(self) -> Any:
        """The call itself, for a test that looks at how it ends."""
        return self._call

    def hello(self) -> node.Hello:
        return node.Hello(
            protocol_min=self.protocol[0],
            protocol_max=self.protocol[1],
            node_id=self.node_id,
            node_name=self.name,
            machine_id=self.machine_id,
            boot_id="b1",
            agent_run_id="r1",
            agent_version="0.0.test",
            max_leader_epoch_seen=self.max_epoch,
            inventory=node.Inventory(
                hostname=self.name,
                system="linux",
                machine="x86_64",
                cpu_count=2,
                memory_bytes=8 * GIB,
                disk_total_bytes=100 * GIB,
                disk_free_bytes=self.disk_free_bytes,
                devices=self.devices(),
                engines=[
                    node.EngineFact(engine="fake", is_usable=True, device_kinds=["cpu"], installed_versions=["1"]),
                    node.EngineFact(engine="llamacpp", is_usable=True, device_kinds=["cpu"]),
                ],
            ),
            observed=self.observed(),
            plane_host=self.plane[0],
            plane_port=self.plane[1],
        )

    def devices(self) -> list[node.DeviceReading]:
        return [node.DeviceReading(device_id="cpu", kind="cpu", name="CPU", total_bytes=8 * GIB, free_bytes=6 * GIB)]

    def observed(self) -> node.Observed:
        return node.Observed(
            applied_generation=self.generation,
            replicas=list(self.replicas.values()),
            files=list(self.files.values()),
            engines=self.engines,
        )

    async def observe(self) -> None:
        """Send everything held."""
        await self.say(node.NodeMessage(observed=self.observed()))

    async def say(self, message: node.NodeMessage) -> None:
        async with self._writing:
            await self._call.write(message)

    async def set(self, replica_id: str, state: str, **fields: Any) -> None:
        """Report one replica in `state`."""
        if state == "ready":
            fields = {"host": "127.0.0.1", "port": 20040, "pid": 4242, "load_s": 0.4, **fields}
        self.replicas[replica_id] = node.ReplicaReport(replica_id=replica_id, state=state, incarnation=1, **fields)
        await self.observe()

    async def finish_pull(self, want_id: str, sha256: str, *, size: int = 98_362_432) -> None:
        """Report a pulled file as done."""
        facts = {
            "format": "gguf",
            "size_bytes": size,
            "architecture": "llama",
            "quantization": "Q4_1",
            "layers": 30,
            "kv_heads": 3,
            "key_length": 64,
            "value_length": 64,
            "embedding_length": 576,
            "vocabulary": 49152,
            "context_length": 8192,
            "parameters": 134515008,
        }
        self.files[want_id] = node.FileReport(
            want_id=want_id, state="done", sha256=sha256, size_bytes=size, facts_json=json.dumps(facts)
        )
        await self.observe()

    async def _beat(self) -> None:
        while True:
            if self.is_beating:
                self.sequence += 1
                beat = node.Heartbeat(
                    sequence=self.sequence,
                    applied_generation=self.generation,
                    devices=self.devices(),
                    disk_free_bytes=self.disk_free_bytes,
                )
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await self.say(node.NodeMessage(heartbeat=beat))
            await asyncio.sleep(0.1)

    async def _read(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for message in self._call:
                await self._hear(message)

    async def _hear(self, message: node.ControllerMessage) -> None:
        kind = message.WhichOneof("body")
        if kind == "desired":
            self.desired.append(message.desired)
            await self._obey(message.desired)
        elif kind == "revoked":
            self.revoked.append(frozenset(message.revoked.serials))
        elif kind == "hello_ack":
            self.ack = message.hello_ack
        elif kind == "heartbeat_ack":
            self.acks.append(message.heartbeat_ack.sequence)
        elif kind == "log_request":
            self.logs.append(message.log_request)
        elif kind == "reject":
            self.reject = message.reject

    async def _obey(self, desired: node.Desired) -> None:
        if desired.generation <= self.generation:
            return
        self.generation = desired.generation
        if self.obeys:
            wanted = {want.replica_id: want for want in desired.replicas}
            for replica_id in list(self.replicas):
                if replica_id not in wanted:
                    del self.replicas[replica_id]
            for replica_id, want in wanted.items():
                if want.desired == "stop":
                    self.replicas[replica_id] = node.ReplicaReport(replica_id=replica_id, state="stopped")
                elif replica_id not in self.replicas:
                    self.replicas[replica_id] = node.ReplicaReport(
                        replica_id=replica_id, state="ready", incarnation=1, host="127.0.0.1", port=20040, pid=4242
                    )
        await self.observe()

    @property
    def last(self) -> node.Desired:
        """The newest desired set."""
        return self.desired[-1]

    async def until_told(self, condition: Any) -> node.Desired:
        """Wait until a desired set satisfies `condition` and return it."""

        async def is_told() -> bool:
            return bool(self.desired) and condition(self.last)

        await until_async(is_told, timeout_s=10, what="a desired set")
        return self.last


class PlayedDoor:
    """A front door that applies each table, unless `applies` is False."""

    def __init__(self, socket: Path, *, door_id: str = "door-1", applies: bool = True) -> None:
        self._socket = socket
        self.door_id = door_id
        self.applies = applies
        self.tables: list[routes.RouteTable] = []
        self.loads: dict[str, int] = {}
        self.applied = 0
        self._channel: Any = None
        self._call: Any = None
        self._writing = asyncio.Lock()  # gRPC takes one write at a time
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "PlayedDoor":
        self._channel = grpc.aio.insecure_channel(f"unix:{self._socket}", options=CHANNEL_OPTIONS)
        stub: Any = routes_pb2_grpc.RoutesStub(self._channel)
        self._call = stub.Watch(metadata=bearer(DOOR))
        await self.report()
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._call.cancel()
        await self._channel.close()

    async def report(self) -> None:
        """Say what is applied and what is in flight."""
        report = routes.DoorReport(
            door_id=self.door_id,
            applied_version=self.applied,
            loads=[routes.ReplicaLoad(replica_id=key, in_flight=count) for key, count in self.loads.items()],
        )
        async with self._writing:
            await self._call.write(report)

    async def apply(self) -> None:
        """Apply the newest table."""
        self.applied = self.tables[-1].version
        await self.report()

    async def _read(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for table in self._call:
                self.tables.append(table)
                if self.applies:
                    await self.apply()

    def route(self, name: str) -> routes.Route | None:
        """Return one route of the newest table."""
        found = [route for route in self.tables[-1].routes if route.public_name == name] if self.tables else []
        return found[0] if found else None

    async def until_routed(self, name: str, targets: int) -> routes.Route:
        """Wait until a route has so many targets and return it."""

        async def is_routed() -> bool:
            route = self.route(name)
            return route is not None and len(route.targets) == targets

        await until_async(is_routed, timeout_s=10, what=f"a route {name} with {targets} targets")
        found = self.route(name)
        assert found is not None
        return found
