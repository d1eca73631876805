"""The node's set of replicas and files: brings what runs here in line with the last desired set.

Comes in: whole `Desired` messages. Goes out: whole `Observed` messages, and `changed` whenever one would differ. Called
by `node_agent.session` and `node_agent.agent`, on one event loop. Must not end an engine for want of information: only
a desired set that was applied (now, or before the node agent's restart) says what may be stopped.
"""

import asyncio
import contextlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from core.errors import Failure
from core.infra.tasks import TaskGuard
from core.states import Desired, ReplicaState
from core.texts import sendable
from node_agent import fences, identity, shim_client
from node_agent.dataplane.entries import PlaneEntry
from node_agent.engines.orders import EngineOrder
from node_agent.files.wants import FileProgress, order_of
from node_agent.identity import Applied
from node_agent.runner import Runner
from node_agent.surroundings import Surroundings
from protos.slice.node.v1 import node_pb2

_RESTART_PAUSE_S = 5.0
_SETTLE_S = 3.0  # a silent node is suspect after 6 s at the earliest (controller.fleet.lease)
_REPLICA_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
_WORDS = frozenset(desired.value for desired in Desired)


class Supervisor:
    """Owns the runners; `apply` and `observed` are its whole surface."""

    def __init__(self, *, data_dir: Path, around: Surroundings, guard: TaskGuard, changed: asyncio.Event) -> None:
        self._data_dir = data_dir
        self._around = around
        self._guard = guard
        self.changed = changed
        self._applied = Applied()
        self._runners: dict[str, Runner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._applying = asyncio.Lock()

    @property
    def applied_generation(self) -> int:
        """Generation of the desired set that is applied; 0 before the first."""
        return self._applied.generation

    @property
    def leader_epoch(self) -> int:
        """The highest leader epoch ever seen."""
        return self._applied.leader_epoch

    async def start(self) -> None:
        """Take up the last applied set: adopt what runs, start what does not (after a reboot, all of it).

        Returns when each adopted engine was probed, or after 3 s: the first report must not call one that serves
        "starting", since nobody would send it requests until the next.
        """
        self._applied = await asyncio.to_thread(identity.load_applied, self._data_dir)
        if self._applied.desired is None:
            return
        await self._sync(self._applied.desired)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                for runner in list(self._runners.values()):
                    await runner.has_settled.wait()

    async def see_epoch(self, leader_epoch: int) -> None:
        """Remember the leader that this node obeys now: what an earlier one still sends is not applied."""
        async with self._applying:
            if leader_epoch > self._applied.leader_epoch:
                self._applied = replace(self._applied, leader_epoch=leader_epoch)
                await asyncio.to_thread(identity.save_applied, self._data_dir, self._applied)

    async def apply(self, desired: node_pb2.Desired) -> bool:
        """Apply `desired` unless a newer or equal one, or a newer leader's, was applied; return whether it was."""
        # Shielded: the stream may break while a set is applied, and the same generation is never applied again.
        return await asyncio.shield(self._guard.brief("apply", self._apply(desired)))

    async def _apply(self, desired: node_pb2.Desired) -> bool:
        async with self._applying:
            applied = self._applied
            if not fences.applies(
                seen_epoch=applied.leader_epoch,
                applied_generation=applied.generation,
                leader_epoch=desired.leader_epoch,
                generation=desired.generation,
            ):
                return False
            self._applied = Applied(generation=desired.generation, leader_epoch=desired.leader_epoch, desired=desired)
            # On disk first: what is started must be known to the next node agent, whenever this one dies.
            await asyncio.to_thread(identity.save_applied, self._data_dir, self._applied)
            await self._sync(desired)
            return True

    async def _sync(self, desired: node_pb2.Desired) -> None:
        files = [file for want in desired.replicas for file in want.files]
        self._around.pulls.know(order_of(file) for file in (*files, *desired.files))
        wanted = {
            want.replica_id: want
            for want in desired.replicas
            if _REPLICA_ID.match(want.replica_id) and (not want.desired or want.desired in _WORDS)
        }
        for replica_id, want in wanted.items():
            if replica_id in self._runners:
                self._runners[replica_id].wish(Desired(want.desired or Desired.RUN), key=want.engine_key)
            else:
                self._begin(want)
        for replica_id in sorted(set(self._runners) - set(wanted)):
            # One that runs still is stopped, and reported as stopped until a later set omits it too.
            if self._runners[replica_id].has_stopped.is_set():
                await self._forget(replica_id)
            else:
                self._runners[replica_id].wish(Desired.STOP)
        for replica_id in await asyncio.to_thread(self._left_behind):
            self._begin(node_pb2.ReplicaWant(replica_id=replica_id, desired=Desired.STOP.value))
        await self._remove_files(desired.removed_files)
        self._around.pulls.apply([order_of(want) for want in desired.files])
        self._around.engines.apply([_engine_order_of(want) for want in desired.engines], self._users_of)
        self.changed.set()

    async def _remove_files(self, digests: Iterable[str]) -> None:
        """Take `digests` out of the store, but for what a replica here, living or about to, was begun with.

        What stays is asked for again with the next set: the controller sees it in what we report.
        """
        used = {file.sha256 for runner in self._runners.values() for file in runner.want.files}
        for digest in digests:
            if digest in used:
                continue
            try:
                await self._around.pulls.remove(digest)
            except OSError as error:
                self._around.log.warning("file_not_removed", sha256=digest, error=error.strerror)

    def _users_of(self, engine: str, version: str) -> tuple[str, ...]:
        """Return the replicas here that run an engine's version, or are about to, or take the newest there is."""
        return tuple(
            sorted(
                replica_id
                for replica_id, runner in self._runners.items()
                if runner.want.engine == engine
                and runner.want.engine_version in (version, "")
                and not runner.has_stopped.is_set()
            )
        )

    def _left_behind(self) -> list[str]:
        """Return replicas that have a directory here but nobody who owns it."""
        if not self._around.replicas_dir.is_dir():
            return []
        names = (path.name for path in self._around.replicas_dir.iterdir() if path.is_dir())
        return sorted(name for name in names if name not in self._runners and _REPLICA_ID.match(name))

    def _begin(self, want: node_pb2.ReplicaWant) -> None:
        runner = Runner(want, self._around)
        self._runners[want.replica_id] = runner
        self._tasks[want.replica_id] = self._guard.brief(f"replica {want.replica_id}", self._keep(runner))

    async def _keep(self, runner: Runner) -> None:
        """Run `runner`; after a fault of ours begin it anew, which adopts the engine."""
        pause = asyncio.Event()
        while True:
            try:
                await runner.run()
            except Exception as error:  # noqa: BLE001 - the replica's outermost frame: logged once, restarted
                self._around.log.error("runner_failed", replica=runner.want.replica_id, error=repr(error), exc=error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pause.wait(), _RESTART_PAUSE_S)

    async def _forget(self, replica_id: str) -> None:
        runner, task = self._runners.pop(replica_id), self._tasks.pop(replica_id)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.to_thread(runner.remove)

    # -- what is told -----------------------------------------------------------------------------------------------

    def observed(self) -> node_pb2.Observed:
        """Return everything the node holds now."""
        return node_pb2.Observed(
            applied_generation=self._applied.generation,
            replicas=[runner.report() for runner in self._runners.values()],
            files=[_report_of(progress) for progress in self._around.pulls.progress()]
            + [
                node_pb2.FileReport(
                    state="done",
                    sha256=stored.sha256,
                    size_bytes=stored.size_bytes,
                    bytes_done=stored.size_bytes,
                    bytes_total=stored.size_bytes,
                    facts_json=sendable(stored.facts_json),
                    chat_template_sha256=stored.chat_template_sha256,
                    used_unix_s=stored.used_unix_s,
                )
                for stored in self._around.pulls.stored()
            ],
        )

    def plane_entries(self) -> list[PlaneEntry]:
        """Return by what the engines here are reached from other machines."""
        found = (runner.plane_entry() for runner in self._runners.values())
        return [entry for entry in found if entry is not None]

    def log_path(self, replica_id: str) -> Path:
        """Return the log of a replica that is or was here.

        Raises:
            Failure: `replica.logs_unavailable`.
        """
        runner = self._runners.get(replica_id)
        if runner is None or not runner.log_path.exists():
            raise Failure(
                "replica.logs_unavailable",
                f"replica {replica_id[:80]} has no log on this node",
                hint="it has not been started here yet, or it was removed",
            )
        return runner.log_path

    def states(self) -> Iterable[ReplicaState]:
        """Return the states of all replicas."""
        return [runner.state for runner in self._runners.values()]


def _engine_order_of(want: node_pb2.EngineWant) -> EngineOrder:
    return EngineOrder(
        engine=want.engine,
        version=want.version,
        source=want.source,
        is_removed=want.is_removed,
        adopt_url=want.adopt_url,
    )


def _report_of(progress: FileProgress) -> node_pb2.FileReport:
    return node_pb2.FileReport(
        want_id=progress.want_id,
        state=progress.state.value,
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        sha256=progress.sha256,
        size_bytes=progress.size_bytes,
        facts_json=sendable(progress.facts_json),
        chat_template_sha256=progress.chat_template_sha256,
        chat_template=sendable(progress.chat_template),
        template_findings=[sendable(finding) for finding in progress.template_findings],
        version_files=[
            node_pb2.VersionFile(
                path=sendable(part.path),
                sha256=part.sha256,
                size_bytes=part.size_bytes,
                source=sendable(part.source),
            )
            for part in progress.version_files
        ],
        resolved_source=sendable(progress.resolved_source),
        code=progress.code,
        message=sendable(progress.message),
    )


async def stop_all(replicas_dir: Path, shim_dir: Path, grace_s: float) -> None:
    """End every engine of this node, living or left by a dead shim; see `node_agent.agent.stop_all_engines`.

    Raises:
        Failure: `shim.lost` when something survives; everything else was ended all the same.
    """

    async def end(record_dir: Path) -> None:
        record = await asyncio.to_thread(shim_client.read_record, record_dir)
        with contextlib.suppress(Failure):  # a shim that does not answer is swept with its tree
            handle = await shim_client.find(record_dir)
            if handle is not None:
                await handle.stop(grace_s)
                await handle.release()
        await shim_client.sweep(record_dir)
        if record is not None:
            record.socket_path.unlink(missing_ok=True)

    directories = [path for path in replicas_dir.glob("*") if path.is_dir()]
    sockets = list(shim_dir.glob("rep_*.sock"))
    outcomes = await asyncio.gather(*(end(directory) for directory in directories), return_exceptions=True)
    for socket_path in sockets:
        # Shims whose directory was removed under them still listen.
        handle = await shim_client.attach(socket_path) if socket_path.exists() else None
        if handle is not None:
            await handle.stop(grace_s)
            await handle.release()
        socket_path.unlink(missing_ok=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
