"""One door put together: table, keys, connections, counts and the line to the controller, behind one ASGI app.

Comes in: a `DoorConfig` and the engines' dialects. Goes out: `Door.app`. Called by `deployment` (inside Ray Serve) and
by tests under a bare uvicorn. The owner of the current table; it must not know Ray.
"""

import asyncio
import os
from pathlib import Path

from core.clock import Clock
from core.errors import Failure
from core.identities import Identity, Role
from core.ids import ReplicaId
from core.infra.entropy import SystemEntropy
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from gateway.app import DoorApp
from gateway.balance import Balance
from gateway.chance import Chance
from gateway.config import DoorConfig
from gateway.gate import Gate
from gateway.ollama_api.surface import OllamaSurface
from gateway.openai.surface import OpenAiSurface
from gateway.papers import DoorPapers
from gateway.relay import DialectOf, Relay, Timeouts
from gateway.table import EMPTY, Table, load_copy, save_copy, table_from
from gateway.upstream import EnginePool
from gateway.usage.report import Reporter
from gateway.usage.row import Rows
from gateway.usage.spool import Spool
from gateway.watch import Watch
from protos.slice.routes.v1 import routes_pb2


class Door:
    """A door of its own id; `app` is the ASGI application, whose lifespan starts and stops the rest."""

    def __init__(self, config: DoorConfig, *, dialect_of: DialectOf, clock: Clock, log: Log, chance: Chance) -> None:
        self._file = Path(config.table_file)
        self._log = log
        self._table: Table = EMPTY
        self._routed: frozenset[ReplicaId] = frozenset()
        self._to_save: routes_pb2.RouteTable | None = None
        self._has_news = asyncio.Event()
        self._is_replaced = asyncio.Event()
        self._guard = TaskGuard(log)
        self.door_id = f"{config.door_id_prefix}-{os.getpid()}-{chance.randbytes(4).hex()}"
        self._papers = DoorPapers(
            identity=Identity(cluster_id=config.cluster_id, role=Role.DOOR, name=self.door_id),
            directory=self._file.parent / "tls",
            target=config.control_target,
            token=config.token,
            clock=clock,
            chance=chance,
            log=log,
            on_renewed=lambda: self._pool.forget_planes(),
        )
        self._pool = EnginePool(clock, self._papers)
        self.balance = Balance(chance, clock, self._replica_idle)
        relay = Relay(
            table=lambda: self._table,
            table_after=self._table_after,
            pool=self._pool,
            balance=self.balance,
            dialect_of=dialect_of,
            clock=clock,
            timeouts=Timeouts(first_byte_s=config.first_byte_timeout_s, idle_s=config.idle_timeout_s),
        )
        self._watch = Watch(
            door_id=self.door_id,
            target=config.control_target,
            token=config.token,
            load=self.balance,
            apply=self.apply,
            applied_version=lambda: self._table.version,
            known_replicas=lambda: self._routed,
            chance=chance,
            log=log,
        )
        self.usage = Reporter(
            door_id=self.door_id,
            target=config.control_target,
            token=config.token,
            rows=Rows(SystemEntropy().token_bytes(12).hex()),
            spool=Spool(self._file.parent / "usage", door_id=self.door_id),
            clock=clock,
            log=log,
        )
        gate = Gate(table=lambda: self._table, pepper=bytes.fromhex(config.key_pepper_hex), clock=clock)
        ollama = OllamaSurface(
            gate=gate,
            relay=relay,
            dialect_of=dialect_of,
            clock=clock,
            body_limit_bytes=config.body_limit_bytes,
            release=config.version,
            unmet=self.balance.unmet,
        )
        openai = OpenAiSurface(gate=gate, relay=relay, clock=clock, body_limit_bytes=config.body_limit_bytes)
        self.app = DoorApp(
            surfaces=(ollama, openai),
            clock=clock,
            log=log,
            on_start=self.start,
            on_stop=self.stop,
            on_end=self.usage.note,
        )

    @property
    def has_failed(self) -> bool:
        """Whether a background task that should live for ever has ended."""
        return self._guard.failed.is_set()

    async def start(self) -> None:
        """Load the last table and begin to watch; an unreadable copy is logged and forgotten."""
        try:
            message = await asyncio.to_thread(load_copy, self._file)
        except Failure as error:
            self._log.warning("table_copy_unreadable", reason=str(error))
        else:
            if message is not None:
                self._serve_by(message)
                self._log.info("table_loaded", version=message.version)
        await self._guard.__aenter__()
        self._guard.eternal("watch", self._watch.run())
        self._guard.eternal("table-writer", self._write_tables())
        self._guard.eternal("papers", self._papers.run())
        self._guard.eternal("pulse", self._pool.pulse.run())
        self._guard.eternal("usage", self.usage.run())

    async def stop(self) -> None:
        """End the background tasks, close the resting connections and hand the last rows of usage over."""
        await self._guard.__aexit__(None, None, None)
        self._pool.close()
        await self.usage.flush()

    def apply(self, message: routes_pb2.RouteTable) -> None:
        """Serve by `message` from now on; requests under way go on with the replica they have."""
        self._serve_by(message)
        self._pool.keep_only(
            frozenset(target.address for route in self._table.routes.values() for target in route.targets)
        )
        self._to_save = message
        self._has_news.set()

    def _serve_by(self, message: routes_pb2.RouteTable) -> None:
        self._table = table_from(message)
        self._routed = self._table.replica_ids()
        self._is_replaced.set()
        self._is_replaced = asyncio.Event()
        if self._papers.revoke(message.revoked_serials):
            self._pool.forget_planes()
        if self._table.has_planes():
            self._papers.want()

    async def _table_after(self, version: int) -> None:
        """Return when another table than `version` is served by."""
        while self._table.version == version:
            await self._is_replaced.wait()

    def _replica_idle(self, replica_id: ReplicaId) -> None:
        if replica_id not in self._routed:
            self._watch.nudge()  # its last request has ended: somebody waits to stop it

    async def _write_tables(self) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            if self._to_save is None:
                continue
            try:
                await asyncio.to_thread(save_copy, self._file, self._to_save)
            except OSError as error:
                # Serving goes on; only a restart without a controller would miss this table.
                self._log.error("table_copy_unwritable", reason=error.strerror)
