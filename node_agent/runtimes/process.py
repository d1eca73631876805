"""An engine that is a process of this node, under a shim of its own.

Comes in: a replica's seat. Goes out: a running engine, told of by its probes, its weight and its exit. When the node
agent ends, the engine runs on; the next one finds it by its shim.
"""

import asyncio
import contextlib
import re
import sys
from dataclasses import replace

from adapters.contract import Health, LaunchRequest, ModelFile, Provisioned
from core.devices import CPU_DEVICE
from core.errors import Failure
from core.ids import Sha256
from core.infra.processes import ProcessMark
from core.states import ReplicaState
from node_agent import launching, lifecycle, logs, measure, probe, shim_client
from node_agent.engines import Installed
from node_agent.files.wants import order_of
from node_agent.launching import Prepared, Started
from node_agent.memory import MemoryWatch
from node_agent.ports import HOST
from node_agent.provisioning import Provisioning
from node_agent.replica import Bounds
from node_agent.returning import Returning
from node_agent.runtimes.contract import Found, Seat, Whereabouts
from node_agent.shim_client import ShimHandle, ShimStatus

_PORT_TAKEN = re.compile(r"address already in use|EADDRINUSE|errno[ =:]*98\b|only one usage of each socket", re.I)
_FIRST_PROBE_S = 0.1
_SLOWEST_START_PROBE_S = 1.0


class ProcessEngine:
    """One engine under a shim."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._want = seat.want
        self._around = seat.around
        self._health = Health(path="/")
        with contextlib.suppress(Failure):  # an engine unknown to this release is refused at its launch
            self._health = self._around.adapter(self._want.engine).health
        self._installed = Installed(python=sys.executable)
        # Of a replica every digest is known beforehand, so one that is adopted while it starts has its files too.
        self._files = tuple(self._model_file(want.path, want.sha256, want.size_bytes) for want in self._want.files)
        self._returning = Returning(
            promises=list(self._want.devices),
            directory=seat.directory,
            devices=self._around.devices,
            within_s=self._around.policy.memory_return_s,
        )
        self._watchers: list[asyncio.Task[None]] = []
        self._handle: ShimHandle | None = None
        self._status: ShimStatus | None = None
        self._provisioning: Provisioning | None = None
        self._started: Started | None = None
        self._port = 0
        self._log_offset = 0
        self._memory_bytes = 0
        self._forever = asyncio.Event()  # never set: waiting on it with a timeout is a timer

    def bounds(self) -> Bounds:
        """Return the deadlines of the adapter and of the node."""
        return Bounds(
            start_timeout_s=self._around.start_timeout_s,
            failures_to_unhealthy=self._health.failures_to_unhealthy,
            stop_grace_s=self._health.stop_grace_s,
        )

    def whereabouts(self) -> Whereabouts:
        """Return its port, leader and weight."""
        leader = self._status.leader if self._handle is not None and self._status is not None else None
        return Whereabouts(
            pid=leader.pid if leader else 0,
            host=HOST if self._port else "",
            port=self._port,
            memory_bytes=self._memory_bytes,
        )

    async def take_up(self) -> Found:
        """Adopt the engine of a living shim; sweep what a dead shim left.

        Raises:
            Failure: `shim.lost` when an earlier shim lives and cannot be reached, or its tree cannot be killed.
        """
        directory = self._seat.directory
        record = await asyncio.to_thread(shim_client.read_record, directory)
        handle = await shim_client.find(directory)
        if handle is not None:
            return await self._adopted(handle)
        if record is None:
            return Found()
        await shim_client.sweep(directory)
        await self._left()
        return Found(incarnation=record.status.incarnation)

    async def _adopted(self, handle: ShimHandle) -> Found:
        status = await handle.status()
        started = await asyncio.to_thread(launching.load_started, self._seat.directory)
        self._handle, self._status, self._started = handle, status, started
        load_s, age_s = 0.0, 0.0
        if started is not None and started.incarnation == status.incarnation:
            self._port, load_s = started.port, started.load_s
            self._around.ports.claim(started.port)
            # One that was ready before gets the whole time anew: it may be in the middle of a long prompt.
            age_s = 0.0 if load_s else max(0.0, self._around.clock.monotonic() - started.spawned_at)
        self._around.log.info(
            "replica_adopted",
            replica=self._want.replica_id,
            incarnation=status.incarnation,
            pid=status.leader.pid if status.leader else 0,
        )
        adopted = lifecycle.Adopted(incarnation=status.incarnation, age_s=age_s, load_s=load_s)
        return Found(incarnation=status.incarnation, adopted=adopted)

    # -- preparing ------------------------------------------------------------------------------------------------

    async def fetch(self) -> None:
        """Bring the version's files into the store.

        Raises:
            Failure: from the store and its fetchers.
        """
        files = []
        for want in self._want.files:
            stored = await self._around.pulls.ensure(order_of(want))
            files.append(self._model_file(want.path, stored.sha256, stored.size_bytes))
        self._files = tuple(files)

    def _model_file(self, path: str, sha256: str, size_bytes: int) -> ModelFile:
        digest = Sha256(sha256)
        place = str(self._around.store.path_of(digest))
        return ModelFile(path=path, sha256=digest, size_bytes=size_bytes, stored_at=place)

    async def install(self) -> None:
        """Make the engine's environment.

        Raises:
            Failure: `engine.unknown`, `engine.not_installed`, `engine.install_failed`, `disk.full`.
        """
        self._installed = await self._around.engines.ensure(self._want.engine, self._want.engine_version)

    async def until_memory_is_back(self) -> None:
        """Wait until the GPUs have back what the last engine held.

        Raises:
            Failure: `engine.memory_not_returned`.
        """
        await self._returning.wait()

    async def spawn(self, incarnation: int) -> None:
        """Write its files and start it under a shim.

        Raises:
            Failure: `shim.start_failed`, `engine.no_free_port`, or from the adapter.
        """
        directory = self._seat.directory
        try:
            await self._clear_old_shim()
            self._port = self._around.ports.take()
            prepared = self._prepared(self._request(), incarnation)
            await asyncio.to_thread(self._write, prepared)
            self._started = Started(
                incarnation=incarnation,
                port=self._port,
                boot_id=shim_client.boot_id(),
                spawned_at=self._around.clock.monotonic(),
            )
            await asyncio.to_thread(launching.save_started, directory, self._started)
            await self._returning.note()
            self._log_offset = await asyncio.to_thread(logs.size_of, self._seat.log_path)
            self._handle = await shim_client.start(prepared.spec, sys.executable)
        except OSError as error:
            reason = f"the files of {self._want.replica_id} cannot be written: {error.strerror}"
            raise Failure("shim.start_failed", reason, hint="check free space and modes") from error

    def _write(self, prepared: Prepared) -> None:
        """Write what must be on disk before the spawn. Blocks."""
        launching.link_model(self._files, self._seat.directory / "model")
        launching.write_files(prepared)

    def _prepared(self, request: LaunchRequest, incarnation: int) -> Prepared:
        return launching.prepare(
            want=self._want,
            adapter=self._around.adapter(self._want.engine),
            request=request,
            incarnation=incarnation,
            replica_dir=self._seat.directory,
            socket_path=self._around.shim_dir / f"{self._want.replica_id}.sock",
            environment=self._around.environment,
        )

    def _request(self) -> LaunchRequest:
        return launching.request_of(
            want=self._want,
            installed=self._installed,
            files=self._files,
            port=self._port,
            replica_dir=self._seat.directory,
        )

    async def _clear_old_shim(self) -> None:
        """End a shim that detached after its starter had given up on it."""
        old = await shim_client.find(self._seat.directory)
        if old is not None:
            await old.stop(0)
            await old.release()

    async def note_ready(self, load_s: float) -> None:
        """Write the load time into `launch.json`, once a spawn."""
        if self._started is None or self._started.load_s:
            return
        self._started = replace(self._started, load_s=load_s)
        try:
            await asyncio.to_thread(launching.save_started, self._seat.directory, self._started)
        except OSError as error:  # a full disk: an engine that is ready is not to be touched for that
            self._around.log.warning("load_not_noted", replica=self._want.replica_id, reason=str(error))

    def renew_key(self, key: str) -> None:
        """Do nothing: the key is one of the spawn."""

    # -- watching -------------------------------------------------------------------------------------------------

    def watch(self, tasks: asyncio.TaskGroup) -> None:
        """Probe it, measure it, and wait for its exit."""
        assert self._handle is not None
        memory = MemoryWatch(
            record_dir=self._seat.directory,
            uses_gpu=any(promise.device_id != CPU_DEVICE for promise in self._want.devices),
            devices=self._around.devices,
            log=self._around.log,
        )
        self._watchers = [
            tasks.create_task(self._watch_exit(self._handle), name="watch exit"),
            tasks.create_task(self._watch_health(self._handle), name="watch health"),
            tasks.create_task(memory.run(self._shim, self._note_memory), name="watch memory"),
        ]

    def _shim(self) -> ProcessMark | None:
        return self._status.shim if self._status else None

    def _note_memory(self, measured: int) -> None:
        self._memory_bytes = measured
        self._around.changed()

    async def _watch_exit(self, handle: ShimHandle) -> None:
        status = await shim_client.until_gone(handle, self._seat.directory, self._note_trouble)
        for watcher in self._watchers[1:]:
            watcher.cancel()
        await self._left()
        tail = await asyncio.to_thread(logs.last_lines, self._seat.log_path, logs.REPORT_LINES, self._log_offset)
        self.clear()
        is_port_taken = self._seat.state() is ReplicaState.STARTING and any(_PORT_TAKEN.search(line) for line in tail)
        lost = "its shim was killed, and the engine with it"
        self._seat.tell(
            lifecycle.Exited(
                exit_code=status.exit_code if status else None,
                exit_signal=status.exit_signal if status else None,
                reason=(status.spawn_error or "") if status else lost,
                log_tail=tail,
                is_port_taken=is_port_taken,
                out_of_memory=status.out_of_memory if status else "",
                chance=self._around.chance(),
            )
        )
        self._seat.tell(lifecycle.TreeGone())  # means something only to a replica that is stopping

    async def _left(self) -> None:
        """Take away what the engine may have left besides processes; a process leaves nothing."""

    def _note_trouble(self, failure: Failure) -> None:
        self._around.log.warning("shim_lost", replica=self._want.replica_id, reason=str(failure))

    async def _watch_health(self, handle: ShimHandle) -> None:
        pause_s = _FIRST_PROBE_S
        while True:
            if self._status is None or self._status.leader is None:
                with contextlib.suppress(Failure):  # its end is seen by the other watcher
                    self._status = await handle.status()
                    self._around.changed()
            self._seat.tell(await self._probed())
            is_starting = self._seat.state() is ReplicaState.STARTING
            await self._pause(pause_s if is_starting else self._health.probe_interval_s)
            pause_s = min(_SLOWEST_START_PROBE_S, pause_s * 1.3)

    async def _probed(self) -> lifecycle.Happened:
        try:
            status = await probe.status_of(HOST, self._port, self._health.path, self._health.probe_timeout_s)
        except probe.ProbeError as error:
            return lifecycle.ProbeFailed(reason=str(error))
        if status != self._health.ready_status:
            return lifecycle.ProbeFailed(reason=f"it answers {status}")
        is_starting = self._seat.state() is ReplicaState.STARTING
        if is_starting and not await self._is_listener_ours():
            return lifecycle.ProbeFailed(reason="another program answers on its port")
        return await self._provisioned() if is_starting else lifecycle.ProbePassed()

    async def _provisioned(self) -> lifecycle.Happened:
        """Make the calls that an engine needs before it serves its model, once a spawn; a failed one is made again."""
        adapter = self._around.adapter(self._want.engine)
        if not isinstance(adapter, Provisioned):
            return lifecycle.ProbePassed()
        if self._provisioning is None:
            self._provisioning = Provisioning(adapter.provision(self._request()), self._want.engine_key)
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

    async def end(self, grace_s: float) -> None:
        """SIGTERM, `grace_s` seconds, SIGKILL; the watcher of its exit tells when nothing is left."""
        if self._handle is None:
            return
        try:
            await self._handle.stop(grace_s)
        except Failure as failure:  # the watcher of its exit sweeps what a dead shim leaves
            self._around.log.warning("stop_failed", replica=self._want.replica_id, reason=str(failure))

    def clear(self) -> None:
        """Give the port back."""
        if self._port:
            self._around.ports.give_back(self._port)
        self._port, self._memory_bytes, self._handle, self._status, self._provisioning = 0, 0, None, None, None

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._forever.wait(), seconds)
