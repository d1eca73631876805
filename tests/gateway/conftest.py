"""One door under a bare uvicorn on loopback, a real gRPC Routes server that feeds it, and scripted engines."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import grpc
import openai
import pytest
import uvicorn

from adapters.contract import Dialect, Endpoint
from core.apikeys import ENTROPY_BYTES, key_digest, parse_key, render_key
from core.infra.clock import SystemClock
from core.infra.grpc import BearerGate
from core.infra.logs import Log
from gateway.config import DoorConfig
from gateway.door import Door
from protos.slice.routes.v1 import routes_pb2, routes_pb2_grpc
from tests.gateway.scripted import ScriptedEngine, answering
from tests.waiting import until_async

PEPPER = b"p" * 32
KID, KEY = render_key(bytes(range(ENTROPY_BYTES)))
OTHER_KID, OTHER_KEY = render_key(bytes(range(1, ENTROPY_BYTES + 1)))
TOKEN = "door-token"
DIALECT = Dialect(
    paths={
        Endpoint.CHAT: "/v1/chat/completions",
        Endpoint.COMPLETIONS: "/v1/completions",
        Endpoint.EMBEDDINGS: "/v1/embeddings",
    },
    overflow_types=frozenset({"exceed_context_size_error"}),
)


class MovableClock:
    """The real clock, moved by hand."""

    def __init__(self) -> None:
        self.real = SystemClock()
        self.ahead_s = 0.0

    def now(self) -> datetime:
        return self.real.now() + timedelta(seconds=self.ahead_s)

    def monotonic(self) -> float:
        return self.real.monotonic() + self.ahead_s


def key_entry(key: str = KEY, **more: object) -> routes_pb2.KeyEntry:
    parsed = parse_key(key)
    return routes_pb2.KeyEntry(kid=parsed.kid, digest=key_digest(PEPPER, parsed.secret), project="default", **more)


def target(engine: ScriptedEngine | int, replica_id: str = "rep_a", incarnation: int = 1) -> routes_pb2.Target:
    port = engine if isinstance(engine, int) else engine.port
    return routes_pb2.Target(
        replica_id=replica_id, incarnation=incarnation, host="127.0.0.1", port=port, engine_key=f"secret-{replica_id}"
    )


def route(
    *targets: routes_pb2.Target,
    name: str = "smollm2",
    served: str = "",
    waiting: str = "",
    endpoints=("chat", "completions"),
    disabled: str = "",
) -> routes_pb2.Route:
    return routes_pb2.Route(
        public_name=name,
        deployment=name,
        served_name=served or name,
        engine="fake",
        endpoints=endpoints,
        targets=targets,
        waiting=waiting,
        created_unix_s=1_700_000_000,
        disabled=disabled,
    )


class RoutesServer(routes_pb2_grpc.RoutesServicer):
    """The controller's side of the line, in this process on a unix socket."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, routes_pb2.DoorReport]] = []
        self.table = routes_pb2.RouteTable()
        self.changed = asyncio.Event()
        self.streams = 0
        self.usage: list[routes_pb2.UsageRow] = []
        self.batches: list[routes_pb2.UsageBatch] = []
        self.usage_code = ""
        self.revoked: list[str] = []

    def push(self, *routes: routes_pb2.Route, keys: list[routes_pb2.KeyEntry] | None = None) -> int:
        table = routes_pb2.RouteTable(version=self.table.version + 1, routes=routes, revoked_serials=self.revoked)
        table.keys.extend([key_entry()] if keys is None else keys)
        self.table = table
        self.changed.set()
        self.changed = asyncio.Event()
        return table.version

    async def Watch(self, request_iterator, context):
        self.streams += 1
        sent = -1
        reading = asyncio.ensure_future(self._read(request_iterator))
        try:
            while True:
                if self.table.version and self.table.version != sent:
                    sent = self.table.version
                    yield self.table
                await self.changed.wait()
        finally:
            reading.cancel()

    async def ReportUsage(self, batch, context):
        self.batches.append(batch)
        if not self.usage_code:
            known = {row.row_id for row in self.usage}
            self.usage.extend(row for row in batch.rows if row.row_id not in known)
        return routes_pb2.UsageReceipt(code=self.usage_code)

    async def used(self, count: int) -> list[routes_pb2.UsageRow]:
        """Wait for `count` rows of usage and return them."""

        async def are_there() -> bool:
            return len(self.usage) >= count

        await until_async(are_there, 5, f"{count} rows of usage")
        return self.usage

    async def _read(self, reports) -> None:
        async for report in reports:
            self.reports.append((asyncio.get_running_loop().time(), report))

    @property
    def last(self) -> routes_pb2.DoorReport | None:
        return self.reports[-1][1] if self.reports else None

    async def applied(self, version: int) -> None:
        async def is_applied() -> bool:
            return self.last is not None and self.last.applied_version == version

        await until_async(is_applied, 5, f"table {version} applied")


@asynccontextmanager
async def serving_routes(socket_path: Path, routes: RoutesServer) -> AsyncIterator[None]:
    server = grpc.aio.server(interceptors=[BearerGate({"slice.routes.v1.Routes": TOKEN})])
    routes_pb2_grpc.add_RoutesServicer_to_server(routes, server)
    server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@dataclass
class RunningDoor:
    """A door that answers on `port`."""

    door: Door
    port: int
    clock: MovableClock
    logged: StringIO = field(repr=False)
    config: DoorConfig = field(repr=False)

    def client(self, key: str = KEY, **more: object) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, **more)


def door_config(tmp_path: Path, **more: object) -> DoorConfig:
    values = {
        "cluster_id": "clu_1",
        "door_id_prefix": "door",
        "host": "127.0.0.1",
        "port": 0,
        "replicas": 1,
        "control_target": f"unix:{tmp_path}/control.sock",
        "token": TOKEN,
        "key_pepper_hex": PEPPER.hex(),
        "table_file": str(tmp_path / "routes.json"),
        "body_limit_bytes": 1024**2,
        "first_byte_timeout_s": 5.0,
        "idle_timeout_s": 5.0,
        "ray_dir": str(tmp_path / "ray"),
        "ray_token_file": str(tmp_path / "ray_token"),
        "ports": {},
        "log_dir": str(tmp_path / "logs"),
        "version": "0",
    }
    return DoorConfig(**{**values, **more})


@asynccontextmanager
async def running_door(
    config: DoorConfig, dialect_of: Callable[[str], Dialect | None] = {"fake": DIALECT}.get
) -> AsyncIterator[RunningDoor]:
    clock, logged = MovableClock(), StringIO()
    door = Door(
        config,
        dialect_of=dialect_of,
        clock=clock,
        log=Log("door", clock, logged),
        chance=random.Random(7),
    )
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(door.app, lifespan="on", access_log=False, log_config=None, timeout_graceful_shutdown=1)
    )
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    try:

        async def is_started() -> bool:
            assert not serving.done(), logged.getvalue()
            return server.started

        await until_async(is_started, 5, "uvicorn")
        yield RunningDoor(door, sock.getsockname()[1], clock, logged, config)
    finally:
        server.should_exit = True
        await serving
        sock.close()


@pytest.fixture
async def routes(tmp_path: Path) -> AsyncIterator[RoutesServer]:
    server = RoutesServer()
    async with serving_routes(tmp_path / "control.sock", server):
        yield server


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine(answering) as running:
        yield running


@pytest.fixture
async def door(tmp_path: Path, routes: RoutesServer) -> AsyncIterator[RunningDoor]:
    async with running_door(door_config(tmp_path)) as running:
        yield running


@pytest.fixture
async def ready(door: RunningDoor, routes: RoutesServer, engine: ScriptedEngine) -> RunningDoor:
    """A door whose model `smollm2` is served by `engine`."""
    await routes.applied(routes.push(route(target(engine))))
    return door


def instant(seconds_from_now: float) -> int:
    return int(datetime.now(UTC).timestamp() + seconds_from_now)
