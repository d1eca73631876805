"""The supervisor: starts the parts of one machine's cluster, restarts those that end, and ends them all on SIGTERM.

Given a block and settings by `cli.roots.supervisor` (detached) or by `slice up --foreground`. It holds a lock for its
life, so there is one at a time. When it dies itself, every part serves on and the next one adopts them.
"""

import asyncio
import fcntl
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from cli.cluster.journal import Journal, Mark
from cli.cluster.parts import Part
from core.clock import Clock
from core.errors import Failure
from core.infra.logs import Log
from core.infra.tasks import TaskGuard

_BACKOFF_FIRST_S = 0.2  # PostgreSQL needs a moment until a dead postmaster's lock file is seen as stale
_BACKOFF_CAP_S = 30.0
_STEADY_AFTER_S = 60.0
"""A part that lived this long is started anew at once, without the earlier back-off."""
_PROBE_EVERY_S = 0.05


class SupervisorLock:
    """The exclusive lock on a data directory; it vanishes with its holder however that ends."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "supervisor.lock"
        self._handle = -1

    def try_hold(self) -> bool:
        """Take the lock when nobody has it."""
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._handle = handle
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        return True

    def holder(self) -> int | None:
        """Return the pid that holds the lock, or None when nobody does."""
        if not self._file.exists() or self.try_hold():
            self.release()
            return None
        text = self._file.read_text().strip()
        return int(text) if text.isdigit() else None

    def release(self) -> None:
        """Let go of the lock when held."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> "SupervisorLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Supervisor:
    """Keeps parts alive until it is told to stop or one of them says that it never can be.

    `first_use` runs once when the parts named in `first_use_needs` are ready, and the cluster is announced when it has
    ended and all parts are ready; `teardown` ends every part.
    """

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        first_use: Callable[[], Awaitable[None]],
        first_use_needs: frozenset[str],
        teardown: Callable[[], Awaitable[None]],
        journal: Journal,
        clock: Clock,
        log: Log,
    ) -> None:
        self._parts = parts
        self._first_use = first_use
        self._first_use_needs = first_use_needs
        self._teardown = teardown
        self._journal = journal
        self._clock = clock
        self._log = log
        self._stopping = asyncio.Event()
        self._failure: Failure | None = None

    def stop(self) -> None:
        """Ask it to end all parts and return."""
        self._stopping.set()

    async def run(self) -> Failure | None:
        """Run until told to stop; return why when a part could never start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        async with TaskGuard(self._log) as guard:
            readiness = {part.name: asyncio.Event() for part in self._parts}
            for part in self._parts:
                guard.brief(f"keep-{part.name}", self._keep(part, readiness[part.name]))
            guard.brief("announce", self._announce(readiness))
            await self._stopping.wait()
        self._log.info("supervisor_stops", failure=str(self._failure or ""))
        if self._failure is not None:
            self._journal.write(Mark.ENDED, "cluster", str(self._failure), self._failure.as_json())
        await self._teardown()
        for part in self._parts:
            await part.ended()  # reaps those that are our children
        return self._failure

    def _give_up(self, failure: Failure) -> None:
        self._failure = self._failure or failure
        self._stopping.set()

    async def _announce(self, readiness: Mapping[str, asyncio.Event]) -> None:
        """Bring the starter model up, wait for all parts, and tell whoever waits for `slice up`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._use_first(readiness))
            for is_ready in readiness.values():
                group.create_task(is_ready.wait())
        self._journal.write(Mark.READY, "cluster", "ready")

    async def _use_first(self, readiness: Mapping[str, asyncio.Event]) -> None:
        """Do the first use as soon as the parts it needs are ready: beside the front door's start, not after it."""
        for name in self._first_use_needs:
            await readiness[name].wait()
        try:
            await self._first_use()
        except Failure as failure:
            # The cluster itself is up: an operator can act on it, so this is no reason to end it.
            self._journal.write(Mark.FAILED, "starter", str(failure), failure.as_json())

    async def _keep(self, part: Part, is_ready: asyncio.Event) -> None:
        delay_s = _BACKOFF_FIRST_S
        while not self._stopping.is_set():
            began = self._clock.monotonic()
            try:
                await self._one_life(part, is_ready)
            except Failure as failure:
                self._give_up(failure)
                return
            if self._stopping.is_set():
                return
            if self._clock.monotonic() - began > _STEADY_AFTER_S:
                delay_s = _BACKOFF_FIRST_S
            self._journal.write(Mark.FAILED, part.name, f"ended; started again in {delay_s:.1f} s")
            await self._wait(delay_s)
            delay_s = min(_BACKOFF_CAP_S, delay_s * 2)

    async def _one_life(self, part: Part, is_ready: asyncio.Event) -> None:
        """Adopt or start a part and wait for its end.

        Raises:
            Failure: it said that starting it again cannot help, or it could not even be started.
        """
        adopted = await part.adopt()
        self._journal.write(Mark.BEGUN, part.name, "adopting" if adopted else "starting")
        if not adopted:
            await part.start()
        self._log.info("part_begun", name=part.name, adopted=adopted)
        async with TaskGuard(self._log) as guard:
            guard.brief(f"probe-{part.name}", self._probe(part, is_ready))
            ended = await part.ended()
        self._log.warning("part_ended", name=part.name, status=ended.status, failure=str(ended.failure or ""))
        if ended.failure is not None:
            raise ended.failure

    async def _probe(self, part: Part, is_ready: asyncio.Event) -> None:
        while not await part.is_ready():
            await self._wait(_PROBE_EVERY_S)
        self._journal.write(Mark.DONE, part.name, "ready")
        is_ready.set()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
