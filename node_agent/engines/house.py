"""Engines on this node: what is installed, what is on its way, and what is taken away again.

Comes in: what replicas need (`ensure`) and what operators want (`apply`). Goes out: what runs an engine, and the state
of every version that is wanted or here. Called by `node_agent.runner`, `node_agent.supervisor` and
`node_agent.inventory`. One version is worked on by one task at a time, however many ask. It installs nothing by itself
but what somebody wants, and removes nothing that a replica uses.
"""

import asyncio
import contextlib
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from adapters.contract import Adapter, Binary, InstallPlan
from core.errors import Failure, Retry
from core.infra import cluster
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from core.states import InstallState
from core.versions import newest_first, version_key
from node_agent.engines.adoption import Adoptions
from node_agent.engines.binaries import Binaries
from node_agent.engines.environments import Environments
from node_agent.engines.orders import EngineOrder, Install, Now, Survey, merged
from node_agent.engines.places import FailedInstall, Installed, Key, Marker, Places, size_below
from node_agent.subprocesses import Children

_INSTALL_DEADLINE_S = 3600.0  # several GB of CUDA libraries over a slow line
_FIRST_RETRY_S = 15.0
_LAST_RETRY_S = 600.0

InUse = Callable[[str, str], tuple[str, ...]]
"""The replicas of this node that use an engine's version."""


def back_off_s(attempts: int, chance: float) -> float:
    """Return the wait after `attempts` failures: min(600, 15 x 2^(n-1)) s, 20 % more or less by `chance` (0 to 1)."""
    return min(_LAST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(attempts - 1, 16)) * (0.8 + 0.4 * chance)


class EngineHouse:
    """The owner of `<root>`."""

    def __init__(
        self,
        *,
        root: Path,
        adapter: Callable[[str], Adapter],
        wheel_dir: str,
        environment: Mapping[str, str],
        children: Children,
        guard: TaskGuard,
        log: Log,
        changed: Callable[[], None] = lambda: None,
        chance: Callable[[], float] = lambda: 0.5,
        source_hosts: str = "",
        first_retry_s: float = _FIRST_RETRY_S,
    ) -> None:
        self._places = Places(root)
        self._root = root
        self._adapter = adapter
        self._environments = Environments(wheel_dir=wheel_dir, environment=environment, children=children, log=log)
        self._binaries = Binaries(
            environment=environment,
            source_hosts=source_hosts,
            children=children,
            guard=guard,
            log=log,
            changed=changed,
        )
        self.adoptions = Adoptions(adapter=adapter, guard=guard, log=log, changed=changed)
        self._guard = guard
        self._log = log
        self._changed = changed
        self._chance = chance
        self._pace = first_retry_s / _FIRST_RETRY_S
        self._installs: dict[Key, asyncio.Task[Installed | Failure]] = {}
        self._locks: dict[Key, asyncio.Lock] = {}
        self._now: dict[Key, Now] = {}
        self._orders: dict[Key, EngineOrder] = {}
        self._jobs: dict[Key, asyncio.Task[None]] = {}
        self._in_use: InUse = lambda engine, version: ()
        self._never = asyncio.Event()  # never set: waiting on it with a timeout is a timer

    # -- what replicas need ---------------------------------------------------------------------------------------

    async def ensure(self, engine: str, version: str) -> Installed:
        """Return what runs `engine` at `version`, installed if need be; "" is the newest program there is, or the
        default version of an engine that is a Python package.

        Raises:
            Failure: `engine.unknown`, `engine.not_installed`, `engine.install_failed`, `source.*`, or `disk.full`.
        """
        adapter = self._adapter(engine)
        plan = adapter.install_plan(version)
        if plan.binary is not None:
            return Installed(python=sys.executable, executable=await self._program(engine, version, plan.binary))
        if not plan.requirements:
            return Installed(python=sys.executable)
        key = (engine, version or adapter.default_version)
        self._places.of(key)  # before anything else: a version that is no plain word names a file elsewhere
        # Shielded: who stops waiting must not take the environment from the others.
        outcome = await asyncio.shield(self._install_task(key, ""))
        if isinstance(outcome, Failure):
            raise outcome
        return outcome

    async def _program(self, engine: str, version: str, binary: Binary) -> str:
        key = (engine, version)
        if key in self._installs:
            await asyncio.shield(self._installs[key])
        found = await self._programs(engine, binary, is_patient=True)
        if version in found:
            return found[version]
        if not version and found:
            return found[newest_first(found)[0]]
        is_here = f"; here are {', '.join(newest_first(found))}" if found else ""
        wanted = f"{engine} {version}" if version else f"the program {binary.executable!r}"
        raise Failure(
            "engine.not_installed",
            f"{wanted} is not on this node{is_here}",
            hint=f"`slice engine install {engine}@VERSION --from SOURCE` brings it, or put it on the node's PATH",
        )

    async def _programs(self, engine: str, binary: Binary, *, is_patient: bool) -> dict[str, str]:
        """Return version -> path of every program of an engine, installed ones before the PATH's.

        A version is "" when the program does not tell it, or has not yet and nobody `is_patient`.
        """
        found: dict[str, str] = {}
        for version in await asyncio.to_thread(self._places.versions, engine):
            marker = await asyncio.to_thread(self._places.marker, (engine, version))
            if marker is not None and marker.executable:
                found[version] = str(self._places.of((engine, version)) / marker.executable)
        program = await self._binaries.on_path(binary, is_patient=is_patient)
        if program is not None:
            found.setdefault(program.version, program.path)
        return found

    # -- what operators want --------------------------------------------------------------------------------------

    def apply(self, orders: Iterable[EngineOrder], in_use: InUse) -> None:
        """Make `orders` the whole of what operators want here; a removal that was refused is tried again."""
        self._in_use = in_use
        orders = tuple(orders)
        self.adoptions.apply(order for order in orders if order.adopt_url)
        wanted = {order.key: order for order in orders if not order.adopt_url}
        for key in set(self._orders) - set(wanted):
            self._end_job(key)
            self._now.pop(key, None)
        for key, order in wanted.items():
            job = self._jobs.get(key)
            is_same = self._orders.get(key) == order
            if is_same and job is not None and (not job.done() or not order.is_removed):
                continue
            self._end_job(key)
            self._orders[key] = order
            work = self._remove(key) if order.is_removed else self._keep(order)
            self._jobs[key] = self._guard.brief(f"engine {key[0]} {key[1]}", work)

    def _end_job(self, key: Key) -> None:
        self._orders.pop(key, None)
        job = self._jobs.pop(key, None)
        if job is not None:
            job.cancel()

    async def _keep(self, order: EngineOrder) -> None:
        """Install what is wanted, with back-off, until it is here or can never be."""
        key = order.key
        try:
            failed = await asyncio.to_thread(self._places.failure, key)
        except Failure as failure:
            self._say(key, InstallState.FAILED, failure.message, failure.code)
            return
        attempts = 0
        if failed is not None and failed.source == order.source:
            self._say(key, InstallState.FAILED, failed.message, failed.code)
            attempts = failed.attempts
            if failed.is_final:
                return
            await self._pause(self._pace * back_off_s(attempts, self._chance()))
        while True:
            self._say(key, InstallState.QUEUED, "it is about to begin")
            outcome = await asyncio.shield(self._install_task(key, order.source))
            if not isinstance(outcome, Failure):
                self._now.pop(key, None)
                self._changed()
                return
            attempts += 1
            failed = FailedInstall(
                code=outcome.code,
                message=str(outcome),
                attempts=attempts,
                is_final=outcome.retry is Retry.NEVER,
                source=order.source,
            )
            await asyncio.to_thread(self._places.note_failure, key, failed)
            if failed.is_final:
                self._say(key, InstallState.FAILED, failed.message, failed.code)
                return
            pause_s = self._pace * back_off_s(attempts, self._chance())
            again = f"; tried again in {pause_s:.0f} s" if attempts == 1 else f"; try {attempts + 1} in {pause_s:.0f} s"
            self._say(key, InstallState.FAILED, failed.message + again, failed.code)
            await self._pause(pause_s)

    async def _remove(self, key: Key) -> None:
        engine, version = key
        users = self._in_use(engine, version)
        if users:
            self._say(key, InstallState.READY, f"it stays: {', '.join(users)} of this node uses it", "engine.in_use")
            return
        running = self._installs.get(key)
        if running is not None:
            running.cancel()
            await asyncio.wait({running})
        async with self._lock(key):
            self._say(key, InstallState.REMOVING, "")
            try:
                await asyncio.to_thread(self._places.clear, key)
                await asyncio.to_thread(shutil.rmtree, self._places.scratch_of(key), ignore_errors=True)
            except OSError as error:
                words = f"it cannot be removed: {(error.strerror or str(error)).lower()}"
                self._say(key, InstallState.FAILED, words, "engine.remove_failed")
                return
            except Failure as failure:  # a version that is no plain word is nowhere
                self._log.warning("engine_not_removed", engine=engine, version=version, reason=str(failure))
        self._now.pop(key, None)
        self._log.info("engine_removed", engine=engine, version=version)
        self._changed()

    def _lock(self, key: Key) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    def _say(self, key: Key, state: InstallState, message: str, code: str = "") -> None:
        now = Now(state=state, code=code, message=message)
        if self._now.get(key) != now:
            self._now[key] = now
            self._changed()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._never.wait(), seconds)

    # -- installing -----------------------------------------------------------------------------------------------

    def _install_task(self, key: Key, source: str) -> "asyncio.Task[Installed | Failure]":
        if key not in self._installs:
            task = self._guard.brief(f"install {key[0]} {key[1]}", self._install(key, source))
            self._installs[key] = task
            task.add_done_callback(partial(self._install_ended, key))
        return self._installs[key]

    def _install_ended(self, key: Key, task: "asyncio.Task[Installed | Failure]") -> None:
        if self._installs.get(key) is task:
            del self._installs[key]
        if key not in self._orders:
            self._now.pop(key, None)
        self._changed()

    async def _install(self, key: Key, source: str) -> Installed | Failure:
        engine, version = key
        try:
            async with self._lock(key):
                adapter = self._adapter(engine)
                plan = adapter.install_plan(version)
                marker = await asyncio.to_thread(self._places.marker, key)
                if marker is None or (source and source != marker.source):
                    self._log.info("engine_install_begun", engine=engine, version=version)
                    async with asyncio.timeout(_INSTALL_DEADLINE_S):
                        marker = await self._made(key, plan, source, is_listed=version in adapter.versions)
                    self._log.info("engine_installed", engine=engine, version=version, size_bytes=marker.size_bytes)
                await asyncio.to_thread(self._places.forget_failure, key)
                return self._as_installed(key, marker)
        except TimeoutError:
            return Failure(
                "engine.install_failed",
                f"installing {engine} {version} took longer than {_INSTALL_DEADLINE_S / 60:.0f} minutes",
                hint="check the network, or set wheel_dir to a directory of wheels",
            )
        except Failure as failure:
            return failure
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            return Failure("engine.install_failed", f"{engine} {version} cannot be installed: {reason}")

    def _as_installed(self, key: Key, marker: Marker) -> Installed:
        place = self._places.of(key)
        if marker.executable:
            return Installed(python=sys.executable, executable=str(place / marker.executable))
        return Installed(python=str(place / "bin" / "python"))

    async def _made(self, key: Key, plan: InstallPlan, source: str, *, is_listed: bool) -> Marker:
        place, scratch = self._places.of(key), self._places.scratch_of(key)
        tell = partial(self._say, key, InstallState.INSTALLING)
        await asyncio.to_thread(self._places.clear, key)
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        await asyncio.to_thread(cluster.make_private_dir, place)
        try:
            if plan.binary is not None:
                marker = await self._made_binary(key, place, plan.binary, source, tell)
            else:
                # A version that this release does not know has no lock of ours.
                lock = plan.lock if is_listed else ""
                await self._environments.make(place, plan, lock=lock, scratch=scratch, tell=tell)
                digest = await asyncio.to_thread(_digest, lock) if lock else ""
                marker = Marker(requirements=plan.requirements, digest=digest)
            size = await asyncio.to_thread(size_below, place)
            marker = replace(marker, size_bytes=size, source=source)
            await asyncio.to_thread(self._places.write_marker, key, marker)
        except BaseException:
            # What is not whole takes no space; without its marker it was never installed.
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, place, ignore_errors=True))
            raise
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True))
        return marker

    async def _made_binary(
        self, key: Key, place: Path, binary: Binary, source: str, tell: Callable[[str], None]
    ) -> Marker:
        engine, version = key
        if not source:
            raise Failure(
                "engine.not_installed",
                f"{engine} is a program of its own: nobody said where {version} comes from",
                hint=f"`slice engine install {engine}@{version} --from file:/PATH` or `--from https://...#file=SHA256`",
            )
        taken = await self._binaries.install(place, binary, source, tell)
        tell("asking the program for its version")
        says = await self._binaries.version_of(place / taken.executable, binary)
        if not says:
            raise Failure(
                "format.refused",
                f"the program does not say which version it is with {' '.join(binary.version_argv)!r}",
                hint="it may be built for another kind of machine; the node agent's log has its words",
            )
        if version_key(says) != version_key(version):
            raise Failure(
                "engine.version_unknown",
                f"the program says that it is {engine} {says}, not {version}",
                hint=f"`slice engine install {engine}@{says} --from SOURCE` installs it under its own version",
            )
        return Marker(executable=taken.executable, digest=taken.digest)

    # -- what is told ---------------------------------------------------------------------------------------------

    async def survey(self, adapters: Iterable[Adapter]) -> Survey:
        """Return every version that is here or wanted here, by engine, and where the adapters' programs are."""
        now, orders = dict(self._now), dict(self._orders)
        installs: dict[str, tuple[Install, ...]] = {}
        executables: dict[str, str] = {}
        for adapter in adapters:
            plan = adapter.install_plan(adapter.default_version)
            if plan.binary is None and not plan.requirements:
                installs[adapter.name] = (Install(version=adapter.default_version, state=InstallState.READY),)
                continue
            found = await asyncio.to_thread(self._on_disk, adapter.name)
            if plan.binary is not None:
                # A survey goes between two heartbeats: it waits for no program.
                programs = await self._programs(adapter.name, plan.binary, is_patient=False)
                if programs:
                    executables[plan.binary.executable] = programs[newest_first(programs)[0]]
                for version, path in programs.items():
                    if not version:
                        continue
                    message = f"found at {path}"
                    found.setdefault(version, Install(version=version, state=InstallState.READY, message=message))
            moving = {key for key in (*now, *orders) if key[0] == adapter.name}
            for key in moving:
                found[key[1]] = merged(key, found.get(key[1]), now.get(key), orders.get(key))
            kept = {version: install for version, install in found.items() if install is not None}
            installs[adapter.name] = tuple(kept[version] for version in newest_first(kept))
        return Survey(installs=installs, executables=executables)

    def _on_disk(self, engine: str) -> dict[str, Install | None]:
        found: dict[str, Install | None] = {}
        for version in self._places.versions(engine):
            marker = self._places.marker((engine, version))
            if marker is not None:
                found[version] = Install(
                    version=version, state=InstallState.READY, digest=marker.digest, size_bytes=marker.size_bytes
                )
        return found

    def installed(self, adapter: Adapter) -> tuple[str, ...]:
        """Return the versions of an engine that are ready here, programs on the PATH apart. Blocks."""
        plan = adapter.install_plan(adapter.default_version)
        if plan.binary is None and not plan.requirements:
            return (adapter.default_version,)
        return self._places.versions(adapter.name)


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
