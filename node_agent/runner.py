"""One replica's owner: the single task that performs what the machine in `node_agent.replica` decides.

Comes in: a `ReplicaWant`, changes of `desired`, and everything that happens to the engine, through one inbox. Goes out:
a running engine under a shim, and its report. Started by `node_agent.supervisor`. When the runner is cancelled (the
node agent ends) the engine runs on; the next runner of the same replica finds it by its shim.
"""

import asyncio
import contextlib
import re
import shutil
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from adapters.contract import Health, LaunchRequest, ModelFile, Provisioned
from core.devices import CPU_DEVICE
from core.errors import Failure
from core.ids import Sha256
from core.infra import cluster
from core.infra.processes import ProcessMark
from core.states import Desired, ReplicaState
from node_agent import launching, lifecycle, logs, measure, probe, replica, shim_client
from node_agent.engines import Installed
from node_agent.files.wants import FileOrder
from node_agent.launching import Started
from node_agent.memory import MemoryWatch
from node_agent.ports import HOST
from node_agent.provisioning import Provisioning
from node_agent.replica import Bounds, Replica
from node_agent.shim_client import ShimHandle, ShimStatus
from node_agent.surroundings import Surroundings
from protos.slice.node.v1 import node_pb2

_PORT_TAKEN = re.compile(r"address already in use|EADDRINUSE|errno[ =:]*98\b|only one usage of each socket", re.I)
_FIRST_PROBE_S = 0.1
_SLOWEST_START_PROBE_S = 1.0
_HANG_GRACE_S = 2.0  # for an engine that does not answer: long enough for a core's last log lines


class Runner:
    """The owner of one replica; `want` never changes, `desired` does."""

    def __init__(self, want: node_pb2.ReplicaWant, around: Surroundings) -> None:
        self.want = want
        self._around = around
        self._desired = Desired(want.desired or Desired.RUN)
        self._dir = around.replicas_dir / want.replica_id
        self._inbox: asyncio.Queue[lifecycle.Happened] = asyncio.Queue()
        self._machine = Replica(policy=around.policy)
        self._tasks = asyncio.TaskGroup()
        self._preparing: asyncio.Task[None] | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._handle: ShimHandle | None = None
        self._status: ShimStatus | None = None
        self._health = Health(path="/")
        self._installed = Installed(python=sys.executable)
        # Of a replica every digest is known beforehand, so one that is adopted while it starts has its files too.
        self._files = tuple(self._model_file(want.path, want.sha256, want.size_bytes) for want in want.files)
        self._provisioning: Provisioning | None = None
        self._port = 0
        self._log_offset = 0
        self._started: Started | None = None
        self._memory_bytes = 0
        self._forever = asyncio.Event()  # never set: waiting on it with a timeout is a timer
        self.has_stopped = asyncio.Event()
        self.has_settled = asyncio.Event()
        """Set once it is known what runs here: nothing, or an adopted engine that was probed."""

    # -- what others may call -------------------------------------------------------------------------------------

    @property
    def log_path(self) -> Path:
        """The engine's log."""
        return self._dir / "engine.log"

    @property
    def state(self) -> ReplicaState:
        """Where the replica is now."""
        return self._machine.state

    def wish(self, desired: Desired) -> None:
        """Take what the controller wants now; `drain` keeps the engine running."""
        self._desired = desired
        if desired is Desired.STOP:
            self._inbox.put_nowait(lifecycle.StopAsked())
        elif self.state is ReplicaState.STOPPED:
            self._inbox.put_nowait(lifecycle.Wanted())

    def report(self) -> node_pb2.ReplicaReport:
        """Return the replica as the controller is to know it."""
        machine = self._machine
        has_engine = self._handle is not None and self._status is not None
        leader = self._status.leader if has_engine and self._status is not None else None
        waits_s = 0.0 if machine.wake_at is None else max(0.0, machine.wake_at - self._around.clock.monotonic())
        return node_pb2.ReplicaReport(
            replica_id=self.want.replica_id,
            incarnation=machine.incarnation,
            state=machine.state.value,
            code=machine.fault.code,
            message=machine.fault.message,
            log_tail=machine.fault.log_tail,
            pid=leader.pid if leader else 0,
            host=HOST if self._port else "",
            port=self._port,
            load_s=machine.load_s if machine.state in (ReplicaState.READY, ReplicaState.UNHEALTHY) else 0.0,
            memory_bytes=self._memory_bytes,
            restarts=machine.restarts,
            retry_in_s=waits_s,
            exit_code=machine.fault.exit_code,
            exit_signal=machine.fault.exit_signal,
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
        self._clear_engine()
        async with asyncio.TaskGroup() as self._tasks:
            await self._begin()
            if self._handle is None:
                self.has_settled.set()
            while True:
                await self._take(await self._next())
                self.has_settled.set()

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
        if done.replica.state is not before.state:
            self._note_move(before.state)
        for effect in done.effects:
            await self._perform(effect)
        if done.replica != before:
            self._around.changed()
        if self._machine.state is ReplicaState.STOPPED:
            self._clear_engine()
            self.has_stopped.set()
            if self._desired is not Desired.STOP:  # it was wanted again while it stopped
                self._inbox.put_nowait(lifecycle.Wanted())
        else:
            self.has_stopped.clear()

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
        if machine.state is ReplicaState.READY and self._started is not None and not self._started.load_s:
            self._started = replace(self._started, load_s=machine.load_s)
            self._tasks.create_task(self._note_load(self._started), name="note load")

    async def _note_load(self, started: Started) -> None:
        try:
            await asyncio.to_thread(launching.save_started, self._dir, started)
        except OSError as error:  # a full disk: an engine that is ready is not to be touched for that
            self._around.log.warning("load_not_noted", replica=self.want.replica_id, reason=str(error))

    async def _perform(self, effect: lifecycle.Effect) -> None:
        match effect:
            case lifecycle.FetchFiles():
                self._prepare("fetch", self._fetch, lifecycle.FilesReady())
            case lifecycle.InstallEngine():
                self._prepare("install", self._install, lifecycle.EngineReady())
            case lifecycle.Spawn():
                await self._spawn(effect.incarnation)
            case lifecycle.Watch():
                self._watch()
            case lifecycle.EndEngine():
                self._tasks.create_task(self._end(_HANG_GRACE_S), name="end")
            case lifecycle.StopEngine():
                self._tasks.create_task(self._end(effect.grace_s), name="stop")
            case lifecycle.Abandon():
                if self._preparing is not None:
                    self._preparing.cancel()

    # -- begin ----------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Adopt what lives, sweep what a dead shim left, or begin anew."""
        await asyncio.to_thread(cluster.make_private_dir, self._dir)
        with contextlib.suppress(Failure):  # an engine unknown to this release is refused at its launch
            self._health = self._around.adapter(self.want.engine).health
        self._machine = replace(
            self._machine,
            bounds=Bounds(
                start_timeout_s=self._around.start_timeout_s,
                failures_to_unhealthy=self._health.failures_to_unhealthy,
                stop_grace_s=self._health.stop_grace_s,
            ),
        )
        record = await asyncio.to_thread(shim_client.read_record, self._dir)
        handle = await shim_client.find(self._dir)
        if handle is not None:
            await self._adopt(handle)
        elif record is not None:
            await shim_client.sweep(self._dir)
            self._machine = replace(self._machine, incarnation=record.status.incarnation)
        if self._desired is Desired.STOP:
            await self._take(lifecycle.StopAsked())
        elif handle is None:
            await self._take(lifecycle.Wanted())

    async def _adopt(self, handle: ShimHandle) -> None:
        status = await handle.status()
        started = await asyncio.to_thread(launching.load_started, self._dir)
        self._handle, self._status, self._started = handle, status, started
        load_s, age_s = 0.0, 0.0
        if started is not None and started.incarnation == status.incarnation:
            self._port, load_s = started.port, started.load_s
            self._around.ports.claim(started.port)
            # One that was ready before gets the whole time anew: it may be in the middle of a long prompt.
            age_s = 0.0 if load_s else max(0.0, self._around.clock.monotonic() - started.spawned_at)
        self._machine = replace(self._machine, restarts=max(0, status.incarnation - 1))
        self._around.log.info(
            "replica_adopted",
            replica=self.want.replica_id,
            incarnation=status.incarnation,
            pid=status.leader.pid if status.leader else 0,
        )
        await self._take(lifecycle.Adopted(incarnation=status.incarnation, age_s=age_s, load_s=load_s))

    # -- preparing ------------------------------------------------------------------------------------------------

    def _prepare(self, name: str, work: Callable[[], Awaitable[None]], good: lifecycle.Happened) -> None:
        self._preparing = self._tasks.create_task(self._prepared(work, good), name=name)

    async def _prepared(self, work: Callable[[], Awaitable[None]], good: lifecycle.Happened) -> None:
        try:
            await work()
        except Failure as failure:
            self._inbox.put_nowait(lifecycle.PreparationFailed(failure=failure, chance=self._around.chance()))
        else:
            self._inbox.put_nowait(good)

    async def _fetch(self) -> None:
        files = []
        for want in self.want.files:
            order = FileOrder(source=want.source, sha256=want.sha256, size_bytes=want.size_bytes, path=want.path)
            stored = await self._around.pulls.ensure(order)
            files.append(self._model_file(want.path, stored.sha256, stored.size_bytes))
        self._files = tuple(files)

    def _model_file(self, path: str, sha256: str, size_bytes: int) -> ModelFile:
        digest = Sha256(sha256)
        place = str(self._around.store.path_of(digest))
        return ModelFile(path=path, sha256=digest, size_bytes=size_bytes, stored_at=place)

    async def _install(self) -> None:
        self._installed = await self._around.engines.ensure(self.want.engine, self.want.engine_version)

    async def _spawn(self, incarnation: int) -> None:
        try:
            await self._clear_old_shim()
            self._port = self._around.ports.take()
            request = self._request()
            prepared = launching.prepare(
                want=self.want,
                adapter=self._around.adapter(self.want.engine),
                request=request,
                incarnation=incarnation,
                replica_dir=self._dir,
                socket_path=self._around.shim_dir / f"{self.want.replica_id}.sock",
                environment=self._around.environment,
            )
            await asyncio.to_thread(launching.link_model, self._files, self._dir / "model")
            await asyncio.to_thread(launching.write_files, prepared)
            self._started = Started(
                incarnation=incarnation,
                port=self._port,
                boot_id=shim_client.boot_id(),
                spawned_at=self._around.clock.monotonic(),
            )
            await asyncio.to_thread(launching.save_started, self._dir, self._started)
            self._log_offset = await asyncio.to_thread(logs.size_of, self.log_path)
            self._handle = await shim_client.start(prepared.spec, sys.executable)
        except Failure as failure:
            await self._spawn_failed(failure)
        except OSError as error:
            reason = f"the files of {self.want.replica_id} cannot be written: {error.strerror}"
            await self._spawn_failed(Failure("shim.start_failed", reason, hint="check free space and modes"))
        else:
            await self._take(lifecycle.Spawned(incarnation=incarnation))

    def _request(self) -> LaunchRequest:
        return launching.request_of(
            want=self.want,
            installed=self._installed,
            files=self._files,
            port=self._port,
            replica_dir=self._dir,
        )

    async def _spawn_failed(self, failure: Failure) -> None:
        self._clear_engine()
        await self._take(lifecycle.PreparationFailed(failure=failure, chance=self._around.chance()))

    async def _clear_old_shim(self) -> None:
        """End a shim that detached after its starter had given up on it."""
        old = await shim_client.find(self._dir)
        if old is not None:
            await old.stop(0)
            await old.release()

    # -- watching -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        assert self._handle is not None
        memory = MemoryWatch(
            record_dir=self._dir,
            uses_gpu=any(promise.device_id != CPU_DEVICE for promise in self.want.devices),
            devices=self._around.devices,
            log=self._around.log,
        )
        self._watchers = [
            self._tasks.create_task(self._watch_exit(self._handle), name="watch exit"),
            self._tasks.create_task(self._watch_health(self._handle), name="watch health"),
            self._tasks.create_task(memory.run(self._shim, self._note_memory), name="watch memory"),
        ]

    def _shim(self) -> ProcessMark | None:
        return self._status.shim if self._status else None

    def _note_memory(self, measured: int) -> None:
        self._memory_bytes = measured
        self._around.changed()

    async def _watch_exit(self, handle: ShimHandle) -> None:
        status = await shim_client.until_gone(handle, self._dir, self._note_trouble)
        for watcher in self._watchers[1:]:
            watcher.cancel()
        tail = await asyncio.to_thread(logs.last_lines, self.log_path, logs.REPORT_LINES, self._log_offset)
        self._clear_engine()
        is_port_taken = self.state is ReplicaState.STARTING and any(_PORT_TAKEN.search(line) for line in tail)
        lost = "its shim was killed, and the engine with it"
        self._inbox.put_nowait(
            lifecycle.Exited(
                exit_code=status.exit_code if status else None,
                exit_signal=status.exit_signal if status else None,
                reason=(status.spawn_error or "") if status else lost,
                log_tail=tail,
                is_port_taken=is_port_taken,
                chance=self._around.chance(),
            )
        )
        self._inbox.put_nowait(lifecycle.TreeGone())  # means something only to a replica that is stopping

    def _note_trouble(self, failure: Failure) -> None:
        self._around.log.warning("shim_lost", replica=self.want.replica_id, reason=str(failure))

    async def _watch_health(self, handle: ShimHandle) -> None:
        pause_s = _FIRST_PROBE_S
        while True:
            if self._status is None or self._status.leader is None:
                with contextlib.suppress(Failure):  # its end is seen by the other watcher
                    self._status = await handle.status()
                    self._around.changed()
            self._inbox.put_nowait(await self._probed())
            is_starting = self.state is ReplicaState.STARTING
            await self._pause(pause_s if is_starting else self._health.probe_interval_s)
            pause_s = min(_SLOWEST_START_PROBE_S, pause_s * 1.3)

    async def _probed(self) -> lifecycle.Happened:
        try:
            status = await probe.status_of(HOST, self._port, self._health.path, self._health.probe_timeout_s)
        except probe.ProbeError as error:
            return lifecycle.ProbeFailed(reason=str(error))
        if status != self._health.ready_status:
            return lifecycle.ProbeFailed(reason=f"it answers {status}")
        if self.state is ReplicaState.STARTING and not await self._is_listener_ours():
            return lifecycle.ProbeFailed(reason="another program answers on its port")
        if self.state is ReplicaState.STARTING:
            return await self._provisioned()
        return lifecycle.ProbePassed()

    async def _provisioned(self) -> lifecycle.Happened:
        """Make the calls that an engine needs before it serves its model, once a spawn; a failed one is made again."""
        adapter = self._around.adapter(self.want.engine)
        if not isinstance(adapter, Provisioned):
            return lifecycle.ProbePassed()
        if self._provisioning is None:
            self._provisioning = Provisioning(adapter.provision(self._request()), self.want.engine_key)
        if fault := await self._provisioning.advance(HOST, self._port):
            return lifecycle.ProbeFailed(reason=fault)
        return lifecycle.ProbePassed()

    async def _is_listener_ours(self) -> bool:
        shim = self._shim()
        if shim is None:
            return True
        members = await asyncio.to_thread(measure.tree_below, shim)
        return await asyncio.to_thread(measure.is_listener_ours, self._port, members)

    # -- ending ---------------------------------------------------------------------------------------------------

    async def _end(self, grace_s: float) -> None:
        if self._handle is None:
            return
        try:
            await self._handle.stop(grace_s)
        except Failure as failure:  # the watcher of its exit sweeps what a dead shim leaves
            self._around.log.warning("stop_failed", replica=self.want.replica_id, reason=str(failure))

    def _clear_engine(self) -> None:
        if self._port:
            self._around.ports.give_back(self._port)
        self._port, self._memory_bytes, self._handle, self._status, self._provisioning = 0, 0, None, None, None

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._forever.wait(), seconds)

    def remove(self) -> None:
        """Remove a stopped replica's directory, log included. Blocks."""
        shutil.rmtree(self._dir, ignore_errors=True)
