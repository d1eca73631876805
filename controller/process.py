"""The controller's process: starts the servers, begins to lead, and runs until SIGTERM or SIGINT.

Called by the composition root with a config, a clock, entropy and a log. /health answers at once; everything else
begins when the database has been migrated and this controller leads. PostgreSQL may go and come at any time.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from controller import assembly
from controller.api import app as api
from controller.api.join_servicer import JoinServicer
from controller.api.node_listeners import NodeListeners
from controller.api.node_servicer import NodeServicer
from controller.api.routes_servicer import RoutesServicer
from controller.api.serving import ControlSocket, HttpServer, claimed
from controller.api.stage import Parts, Stage
from controller.fleet.admission import Bounds
from controller.leadership import RENEW_S, Leadership, LeadershipLostError
from controller.ledger.service import Bell
from controller.reconcile.loop import LoopConfig
from core.clock import Clock
from core.errors import Failure, Kind
from core.infra import postgres
from core.infra.logs import Log
from core.infra.metrics import MetricsPage
from core.infra.tasks import TaskGuard

SCHEMA = "controller"
MIGRATIONS = Path(__file__).parent / "migrations"
START_RETRY_S = 0.3
"""Between two attempts to reach the database or to lead, besides what the attempt itself waits."""
LEAVE_S = 2.0
"""Longest wait for the database when this controller ends: without it the lease runs out by itself."""
HTTP_END_S = 3.0
"""Longest wait for open requests; uvicorn itself gives them one second."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """All that a controller is told; seconds, bytes, and secrets that are never logged."""

    cluster_id: str
    database_url: str = field(repr=False)
    host: str
    port: int
    control_socket: Path
    operator_token: str = field(repr=False)
    node_token: str = field(repr=False)
    door_token: str = field(repr=False)
    key_pepper: bytes = field(repr=False)
    engine_seed: bytes = field(repr=False)
    secret_key: bytes = field(repr=False)
    openai_base_url: str
    heartbeat_s: float
    drain_timeout_s: float
    cpu_memory_reserve_bytes: int
    version: str
    secrets_dir: Path
    disk_pressure_bytes: int = 0
    node_host: str = ""
    node_port: int = 0
    own_node_id: Callable[[], str] = str
    """Returns the id of the node on the controller's own machine, "" while there is none."""
    hellos: Bounds = Bounds()  # noqa: RUF009 - frozen


async def run(config: ControllerConfig, *, clock: Clock, entropy: assembly.Entropy, log: Log) -> None:
    """Run the controller until SIGTERM or SIGINT.

    Raises:
        Failure: `cluster.port_taken`, `cluster.data_dir_unusable`, a `storage.*` that waiting cannot cure, or
            `internal.unexpected` when a part that must live has died.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    handler = _PoolWords(log)
    logging.getLogger("psycopg.pool").addHandler(handler)
    lock = await asyncio.to_thread(claimed, config.control_socket)
    try:
        await Controller(config, clock=clock, entropy=entropy, log=log).run_until(stop)
    finally:
        os.close(lock)
        logging.getLogger("psycopg.pool").removeHandler(handler)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class Controller:
    """One controller: `run` gives it signals and the lock on its socket, tests give it an event."""

    def __init__(self, config: ControllerConfig, *, clock: Clock, entropy: assembly.Entropy, log: Log) -> None:
        self._config = config
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._bell = Bell()
        self._database = postgres.Database(config.database_url, name="slice-controller", on_commit=self._bell.ring)
        self._leadership = Leadership(self._database, f"{socket.gethostname()}:{config.control_socket}")
        self._http_ended = asyncio.Event()
        self._is_ending = False
        self._nodes: NodeListeners | None = None
        self.stage = Stage()
        app = api.fast_api(self.stage, MetricsPage(assembly.readings(self.stage)), version=config.version)
        gate = api.guarded(
            app,
            self.stage,
            operator_token=config.operator_token,
            host=config.host,
            pepper=config.key_pepper,
            log=log,
        )
        self.http = HttpServer(gate, host=config.host, port=config.port)
        self._control = ControlSocket(config.control_socket, node_token=config.node_token, door_token=config.door_token)

    async def run_until(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set.

        Raises:
            Failure: as for `run`.
        """
        try:
            async with TaskGuard(self._log) as guard:
                guard.eternal("http", self._serve_http())
                await self._database.open()
                work = guard.eternal("work", self._work(guard))
                await _first(stop, guard.failed)
                self._log.info("controller_ending", is_asked=stop.is_set())
                await self._stop_serving()
            if not stop.is_set():
                raise _reason(work)
        finally:
            self.http.close()
            await self._leave()

    async def _serve_http(self) -> None:
        try:
            await self.http.serve()
        finally:
            self._http_ended.set()
        if self._is_ending:
            await asyncio.Event().wait()  # asked to end: stay until the guard cancels, which is no failure

    async def _work(self, guard: TaskGuard) -> None:
        """Begin to lead, start everything that needs a leader, and renew the lease for ever."""
        schema = await self._retried(self._lead)
        parts = self._build(schema)
        await self._retried(parts.fleet.load)
        await self._retried(parts.certificates.load)
        self.stage.begin(parts)
        guard.eternal("hellos", parts.fleet.take_hellos())
        guard.eternal("reconcile", parts.loop.run())
        guard.eternal("leases", _ticking(parts))
        nodes = NodeServicer(stage=self.stage, engine_seed=self._config.engine_seed, clock=self._clock, log=self._log)
        self._control.add(nodes=nodes, routes=RoutesServicer(stage=self.stage, log=self._log))
        await self._control.start()
        if self._config.node_host:
            await self._listen(guard, parts, nodes)
        self._log.info("controller_ready", leader_epoch=self._leadership.epoch, schema=schema)
        while True:
            await _pause(RENEW_S)
            try:
                await self._leadership.renew()
                parts.fleet.storage_is(up=True)
            except Failure:
                parts.fleet.storage_is(up=False)
                continue  # the reconcile loop tells of the lost database; the reign lasts unless another one begins

    async def _listen(self, guard: TaskGuard, parts: Parts, nodes: NodeServicer) -> None:
        """Let other machines in."""
        self._nodes = NodeListeners(
            host=self._config.node_host,
            port=self._config.node_port,
            certificates=parts.certificates,
            clock=self._clock,
            log=self._log,
        )
        self._nodes.add(nodes=nodes, joins=JoinServicer(stage=self.stage, log=self._log))
        await self._retried(self._nodes.start)
        guard.eternal("certificate", self._nodes.keep())

    async def _lead(self) -> int:
        migrations = await asyncio.to_thread(postgres.load_migrations, MIGRATIONS)
        number = await postgres.migrate(self._database, SCHEMA, migrations)
        await self._leadership.acquire()
        return number

    def _build(self, schema: int) -> Parts:
        config = self._config
        facts = assembly.Facts(
            cluster_id=config.cluster_id,
            version=config.version,
            schema=schema,
            openai_base_url=config.openai_base_url,
            key_pepper=config.key_pepper,
            secret_key=config.secret_key,
            secrets_dir=config.secrets_dir,
            node_host=config.node_host,
            node_port=config.node_port,
            heartbeat_s=config.heartbeat_s,
            hellos=config.hellos,
            loop=LoopConfig(
                cpu_reserve_bytes=config.cpu_memory_reserve_bytes,
                drain_timeout_s=config.drain_timeout_s,
                engine_seed=config.engine_seed,
                disk_pressure_bytes=config.disk_pressure_bytes,
                own_node_id=config.own_node_id,
            ),
            own_node_id=config.own_node_id,
        )
        return assembly.build(
            facts,
            database=self._database,
            leadership=self._leadership,
            bell=self._bell,
            clock=self._clock,
            entropy=self._entropy,
            log=self._log,
        )

    async def _retried(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        told = ""
        while True:
            try:
                return await attempt()
            except Failure as failure:
                if failure.kind is not Kind.UNAVAILABLE:
                    raise
                self.stage.failure = failure
                if told != failure.message:
                    told = failure.message
                    self._log.warning("controller_waits", code=failure.code, message=failure.message)
            await _pause(START_RETRY_S)

    async def _stop_serving(self) -> None:
        self._is_ending = True
        if self.stage.is_ready:
            self.stage.parts().fleet.close_all()
        self.http.stop()
        await self._control.stop()
        if self._nodes is not None:
            await self._nodes.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HTTP_END_S):
                await self._http_ended.wait()

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE_S):
                if self._leadership.epoch:
                    await self._leadership.release()
        except (Failure, TimeoutError):
            self._log.warning("lease_not_released")
        await postgres.wait_closed(self._database)


class _PoolWords(logging.Handler):
    """Passes psycopg's warnings about the pool into our log, each text once until another comes."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one warning."""
        text = record.getMessage()
        if text != self._last:
            self._last = text
            self._log.warning("postgres_pool", message=text)


def _reason(work: "asyncio.Task[None]") -> Failure:
    error = work.exception() if work.done() and not work.cancelled() else None
    if isinstance(error, Failure):
        return error
    if isinstance(error, LeadershipLostError):
        return Failure("controller.not_ready", "another controller leads this cluster now", hint="this one ends")
    return Failure("internal.unexpected", "a part of the controller has died", hint="its log says why")


async def _ticking(parts: Parts) -> None:
    while True:
        await _pause(min(1.0, parts.fleet.timers.tick_s))
        parts.fleet.tick()
        parts.routes.tick()


async def _pause(seconds: float) -> None:
    """Wait for the next beat of a periodic timer."""
    await asyncio.sleep(seconds)


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of `events` is set."""
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
