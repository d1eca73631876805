"""The door's line to the controller: tables come down, reports go up, reconnecting for ever.

Comes in: `RouteTable` messages. Goes out: `DoorReport` messages at least every `REPORT_S` and at once after a table is
applied. Run by `door.Door` as an eternal task. While the controller is away the door serves on from its last table; a
table is never aged out. It must not block the loop (the file is written in a thread) and holds no fact but the line.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import grpc

from core.ids import ReplicaId
from core.infra.grpc import CHANNEL_OPTIONS, bearer
from core.infra.logs import Log
from gateway.chance import Chance
from protos.slice.routes.v1 import routes_pb2, routes_pb2_grpc

REPORT_S = 0.9
"""Time between reports when nothing happens; the controller expects one a second."""
BACKOFF_FIRST_S = 0.2
BACKOFF_MOST_S = 0.5
"""The controller is on this machine: a try costs little, and one that is started again is to have its doors at once."""


class Load(Protocol):
    """What the reports say of this door's work; `balance.Balance` is the real one."""

    def in_flight(self) -> dict[ReplicaId, int]:
        """Return the requests under way by replica."""

    def drain_demand(self) -> dict[str, int]:
        """Return the requests since the last call that found no replica, by public name."""


class Watch:
    """One door's line; `apply` takes a table and returns when requests are served by it."""

    def __init__(
        self,
        *,
        door_id: str,
        target: str,
        token: str,
        load: Load,
        apply: Callable[[routes_pb2.RouteTable], None],
        applied_version: Callable[[], int],
        known_replicas: Callable[[], frozenset[ReplicaId]],
        chance: Chance,
        log: Log,
    ) -> None:
        self._door_id = door_id
        self._target = target
        self._token = token
        self._load = load
        self._apply = apply
        self._applied_version = applied_version
        self._known_replicas = known_replicas
        self._chance = chance
        self._log = log
        self._has_news = asyncio.Event()

    async def run(self) -> None:
        """Hold the line until cancelled; every loss is followed by a new try, paced with full jitter."""
        failures = 0
        async with grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS) as channel:
            stub = routes_pb2_grpc.RoutesStub(channel)  # type: ignore[no-untyped-call]
            while True:
                try:
                    heard = await self._hold(stub)
                    failures = 0 if heard else failures + 1
                except grpc.aio.AioRpcError as error:
                    if failures == 0:
                        self._log.warning("controller_lost", code=error.code().name, details=error.details())
                    failures += 1
                except _Ended as error:
                    failures = 1 if error.has_heard else failures + 1
                longest = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(failures, 8))
                await asyncio.sleep(self._chance.uniform(0.05, longest))

    async def _hold(self, stub: routes_pb2_grpc.RoutesStub) -> bool:
        has_heard = False
        call = stub.Watch(self._reports(), metadata=bearer(self._token))
        try:
            async for message in call:
                if not has_heard:
                    self._log.info("controller_found", version=message.version)
                has_heard = True
                self._apply(message)
                self.nudge()
        except grpc.aio.AioRpcError as error:
            if has_heard:
                self._log.warning("controller_lost", code=error.code().name, details=error.details())
                raise _Ended(has_heard=True) from error
            raise
        finally:
            call.cancel()
        return has_heard

    async def _reports(self) -> AsyncIterator[routes_pb2.DoorReport]:
        while True:
            self._has_news.clear()
            yield self.report()
            try:
                async with asyncio.timeout(REPORT_S):
                    await self._has_news.wait()
            except TimeoutError:
                continue

    def nudge(self) -> None:
        """Report at once: something happened that the controller waits for."""
        self._has_news.set()

    def report(self) -> routes_pb2.DoorReport:
        """Return what this door says now: replicas of the table with their counts (zero included), and leavers."""
        busy: Mapping[ReplicaId, int] = self._load.in_flight()
        loads = [
            routes_pb2.ReplicaLoad(replica_id=replica_id, in_flight=busy.get(replica_id, 0))
            for replica_id in sorted(self._known_replicas() | busy.keys())
        ]
        return routes_pb2.DoorReport(
            door_id=self._door_id,
            applied_version=self._applied_version(),
            loads=loads,
            demand=self._load.drain_demand(),
        )


class _Ended(Exception):
    """A line that had worked ended."""

    def __init__(self, *, has_heard: bool) -> None:
        super().__init__("the line ended")
        self.has_heard = has_heard
