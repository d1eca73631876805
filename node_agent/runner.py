"""One replica's owner: the single task that performs what the machine in `node_agent.replica` decides.

Comes in: a `ReplicaWant`, changes of `desired`, and everything that happens to the engine, through one inbox. Goes out:
what its engine (`node_agent.runtimes`) is told to do, and its report. Started by `node_agent.supervisor`. When the
runner is cancelled (the node agent ends) the engine runs on; the next runner of the same replica takes it up.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from adapters.contract import Runtime
from core.errors import Failure
from core.infra import cluster
from core.origins import is_carried, parse_base_url
from core.states import Desired, ReplicaState
from core.texts import sendable
from node_agent import launching, lifecycle, replica, tries
from node_agent.dataplane.entries import PlaneEntry, paths_of
from node_agent.replica import Replica
from node_agent.runtimes.container import ContainerEngine
from node_agent.runtimes.contract import Engine, Seat
from node_agent.runtimes.external import ExternalEngine
from node_agent.runtimes.process import ProcessEngine
from node_agent.surroundings import Surroundings
from protos.slice.node.v1 import node_pb2

_REACHABLE = frozenset({ReplicaState.STARTING, ReplicaState.READY, ReplicaState.UNHEALTHY})
_HANG_GRACE_S = 2.0  # for an engine that does not answer: long enough for a core's last log lines


def engine_of(seat: Seat) -> Engine:
    """Return the engine of the runtime that is wanted; "" is a process."""
    if seat.want.runtime == Runtime.EXTERNAL:
        return ExternalEngine(seat)
    if seat.want.runtime == Runtime.CONTAINER:
        return ContainerEngine(seat)
    return ProcessEngine(seat)


class Runner:
    """The owner of one replica; `want` never changes, `desired` and the key of a remote engine do."""

    def __init__(self, want: node_pb2.ReplicaWant, around: Surroundings) -> None:
        self.want = want
        self._around = around
        self._desired = Desired(want.desired or Desired.RUN)
        self._dir = around.replicas_dir / want.replica_id
        self._inbox: asyncio.Queue[lifecycle.Happened] = asyncio.Queue()
        self._machine = Replica(policy=around.policy)
        self._kept = tries.Tries()
        self._tasks = asyncio.TaskGroup()
        self._preparing: asyncio.Task[None] | None = None
        self._seat = Seat(want=want, directory=self._dir, around=around, tell=self._tell, state=lambda: self.state)
        self._engine = engine_of(self._seat)
        self.has_stopped = asyncio.Event()
        self.has_settled = asyncio.Event()
        """Set once it is known what runs here: nothing, or an adopted engine that was probed."""

    # -- what others may call -------------------------------------------------------------------------------------

    @property
    def log_path(self) -> Path:
        """The engine's log."""
        return self._seat.log_path

    @property
    def state(self) -> ReplicaState:
        """Where the replica is now."""
        return self._machine.state

    def wish(self, desired: Desired, *, key: str | None = None) -> None:
        """Take what the controller wants now: `drain` keeps the engine running, `key` is its key if it was changed."""
        if key is not None:
            self._engine.renew_key(key)
        self._desired = desired
        if desired is Desired.STOP:
            self._tell(lifecycle.StopAsked())
        elif self.state is ReplicaState.STOPPED:
            self._tell(lifecycle.Wanted())

    def report(self) -> node_pb2.ReplicaReport:
        """Return the replica as the controller is to know it."""
        machine = self._machine
        where = self._engine.whereabouts()
        waits_s = 0.0 if machine.wake_at is None else max(0.0, machine.wake_at - self._around.clock.monotonic())
        return node_pb2.ReplicaReport(
            replica_id=self.want.replica_id,
            incarnation=machine.incarnation,
            state=machine.state.value,
            code=machine.fault.code,
            message=sendable(machine.fault.message),
            log_tail=[sendable(line) for line in machine.fault.log_tail],
            pid=where.pid,
            host=where.host,
            port=where.port,
            base_url=where.base_url,
            load_s=machine.load_s if machine.state in (ReplicaState.READY, ReplicaState.UNHEALTHY) else 0.0,
            memory_bytes=where.memory_bytes,
            restarts=machine.restarts,
            retry_in_s=waits_s,
            exit_code=machine.fault.exit_code,
            exit_signal=machine.fault.exit_signal,
        )

    def plane_entry(self) -> PlaneEntry | None:
        """Return by what doors on other machines reach the engine; None while it has never been ready in this spawn.

        One that is unhealthy, or adopted and not yet probed, stays reachable: it may be at work on what was asked
        before, and whether it gets new requests is the route table's affair.
        """
        machine, where = self._machine, self._engine.whereabouts()
        if machine.state not in _REACHABLE or not machine.load_s or not where.port:
            return None
        prefix = ""
        try:
            if where.base_url:
                origin = parse_base_url(where.base_url)
                if not is_carried(origin):
                    return None
                prefix = origin.prefix
            paths = paths_of(self._around.adapter(self.want.engine), launching.settings_of(self.want), prefix)
        except Failure:  # an engine or settings of another release: nothing of it runs
            return None
        return PlaneEntry(
            replica_id=self.want.replica_id, incarnation=machine.incarnation, port=where.port, paths=paths
        )

    async def run(self) -> None:
        """Own the replica until cancelled; what runs already is adopted first.

        Raises:
            ExceptionGroup: what ended the owner or one of its tasks, without which the replica would stay as it was for
                ever; e.g. `Failure` `shim.lost` when an earlier shim lives and cannot be reached, or its tree cannot be
                killed.
        """
        # Anew each time: after a fault of ours nothing that was thought before is trusted, only what is found.
        self._machine = Replica(policy=self._around.policy, incarnation=self._machine.incarnation)
        self._inbox = asyncio.Queue()
        self._engine.clear()
        async with asyncio.TaskGroup() as self._tasks:
            await self._begin()
            if self.state is not ReplicaState.STARTING:  # nothing was adopted that a probe has yet to find well
                self.has_settled.set()
            while True:
                await self._take(await self._next())
                self.has_settled.set()

    def _tell(self, event: lifecycle.Happened) -> None:
        self._inbox.put_nowait(event)

    # -- the loop -------------------------------------------------------------------------------------------------

    async def _next(self) -> lifecycle.Happened:
        wake_at = self._machine.wake_at
        if wake_at is None:
            return await self._inbox.get()
        try:
            async with asyncio.timeout(max(0.0, wake_at - self._around.clock.monotonic())):
                return await self._inbox.get()
        except TimeoutError:
            return lifecycle.TimeCame()

    async def _take(self, event: lifecycle.Happened) -> None:
        before = self._machine
        if isinstance(event, lifecycle.Wanted) and before.state is ReplicaState.STOPPED:
            before = Replica(policy=before.policy, bounds=before.bounds, incarnation=before.incarnation)
        done = replica.step(before, event, self._around.clock.monotonic())
        self._machine = done.replica
        await self._keep_tries()
        if done.replica.state is not before.state:
            self._note_move(before.state)
        for effect in done.effects:
            await self._perform(effect)
        if done.replica != before:
            self._around.changed()
        if self._machine.state is ReplicaState.STOPPED:
            self._engine.clear()
            self.has_stopped.set()
            if self._desired is not Desired.STOP:  # it was wanted again while it stopped
                self._tell(lifecycle.Wanted())
        else:
            self.has_stopped.clear()

    async def _keep_tries(self) -> None:
        """Write down what has been tried, before anything is done about it, where it has changed."""
        now = tries.tries_of(self._machine)
        if now == self._kept:
            return
        self._kept = now
        try:
            await asyncio.to_thread(tries.save, self._dir, now)
        except OSError as error:  # a full disk: counts that a restart forgets are better than an engine that waits
            self._around.log.warning("tries_not_noted", replica=self.want.replica_id, reason=str(error))

    def _note_move(self, before: ReplicaState) -> None:
        machine = self._machine
        self._around.log.info(
            "replica_moved",
            replica=self.want.replica_id,
            was=before.value,
            state=machine.state.value,
            incarnation=machine.incarnation,
            code=machine.fault.code,
            message=machine.fault.message,
        )
        if machine.state is ReplicaState.READY:
            self._tasks.create_task(self._engine.note_ready(machine.load_s), name="note load")

    async def _perform(self, effect: lifecycle.Effect) -> None:
        match effect:
            case lifecycle.FetchFiles():
                self._prepare("fetch", self._engine.fetch, lifecycle.FilesReady())
            case lifecycle.InstallEngine():
                self._prepare("install", self._installed, lifecycle.EngineReady())
            case lifecycle.Spawn():
                await self._spawn(effect.incarnation)
            case lifecycle.Watch():
                self._engine.watch(self._tasks)
            case lifecycle.EndEngine():
                self._tasks.create_task(self._engine.end(_HANG_GRACE_S), name="end")
            case lifecycle.StopEngine():
                self._tasks.create_task(self._engine.end(effect.grace_s), name="stop")
            case lifecycle.Abandon():
                if self._preparing is not None:
                    self._preparing.cancel()

    # -- begin ----------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Adopt what lives, sweep what a dead owner left, or begin anew."""
        await asyncio.to_thread(cluster.make_private_dir, self._dir)
        self._machine = replace(self._machine, bounds=self._engine.bounds())
        self._kept = await asyncio.to_thread(tries.load, self._dir)
        self._machine = tries.with_counts(self._machine, self._kept)
        found = await self._engine.take_up()
        if found.adopted is not None:
            self._machine = replace(self._machine, restarts=max(self._machine.restarts, found.incarnation - 1))
            await self._take(found.adopted)
        elif found.incarnation:
            self._machine = replace(self._machine, incarnation=found.incarnation)
        if self._desired is Desired.STOP:
            await self._take(lifecycle.StopAsked())
        elif found.adopted is None:
            resting = tries.at_rest(self._machine, self._kept)
            if resting is None:
                await self._take(lifecycle.Wanted())
            else:  # an earlier node agent decided: its wait goes on
                self._machine = resting
                self._around.changed()

    # -- preparing ------------------------------------------------------------------------------------------------

    def _prepare(self, name: str, work: Callable[[], Awaitable[None]], good: lifecycle.Happened) -> None:
        self._preparing = self._tasks.create_task(self._prepared(work, good), name=name)

    async def _prepared(self, work: Callable[[], Awaitable[None]], good: lifecycle.Happened) -> None:
        try:
            await work()
        except Failure as failure:
            self._tell(lifecycle.PreparationFailed(failure=failure, chance=self._around.chance()))
        else:
            self._tell(good)

    async def _installed(self) -> None:
        await self._engine.install()
        await self._engine.until_memory_is_back()

    async def _spawn(self, incarnation: int) -> None:
        try:
            await self._engine.spawn(incarnation)
        except Failure as failure:
            self._engine.clear()
            await self._take(lifecycle.PreparationFailed(failure=failure, chance=self._around.chance()))
        else:
            await self._take(lifecycle.Spawned(incarnation=incarnation))

    def remove(self) -> None:
        """Remove a stopped replica's directory, log included. Blocks."""
        shutil.rmtree(self._dir, ignore_errors=True)
