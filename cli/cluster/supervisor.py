"""The supervisor: starts the parts of one machine's cluster, restarts those that end, and ends them all on SIGTERM.

Given parts by `cli.roots.supervisor`, which holds the data directory's lock meanwhile, so there is one at a time. When
it dies itself, every part serves on and the next one adopts them.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from cli.cluster.journal import Journal, Mark
from cli.cluster.parts import Part
from core.clock import Clock
from core.errors import Failure, Retry
from core.infra.logs import Log
from core.infra.tasks import TaskGuard

_BACKOFF_FIRST_S = 0.2  # PostgreSQL needs a moment until a dead postmaster's lock file is seen as stale
_BACKOFF_CAP_S = 30.0
_STEADY_AFTER_S = 10.0
"""A part that did its work for so long is started anew at once, without the earlier back-off: at this rate even one
that ends again and again costs little, and one that only starts and ends never comes so far."""
_PROBE_EVERY_S = 0.05
_REAP_S = 10.0


@dataclass
class _Life:
    """One life of a part: from when on it did its work, in the clock's monotonic seconds; None while it does not."""

    ready_at: float | None = None


class Supervisor:
    """Keeps parts alive until it is told to stop or one of them says that it never can be.

    `first_use` runs once when the parts named in `first_use_needs` are ready, and the cluster is announced when it has
    ended and all parts are ready; `teardown` ends every part. A part that is not ready `start_deadline_s` seconds after
    the start ends the start.
    """

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        first_use: Callable[[], Awaitable[None]],
        first_use_needs: frozenset[str],
        start_deadline_s: float,
        teardown: Callable[[], Awaitable[None]],
        journal: Journal,
        clock: Clock,
        log: Log,
    ) -> None:
        self._parts = parts
        self._first_use = first_use
        self._first_use_needs = first_use_needs
        self._start_deadline_s = start_deadline_s
        self._teardown = teardown
        self._journal = journal
        self._clock = clock
        self._log = log
        self._stopping = asyncio.Event()
        self._failure: Failure | None = None
        self._is_announced = False

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
        else:
            self._journal.write(Mark.STOPPING, "cluster", "ending")
        try:
            await self._teardown()
        except Failure as failure:
            self._failure = self._failure or failure
        await self._reap()
        return self._failure

    async def _reap(self) -> None:
        """Take the ends of those parts that are our children; the deadline is for one that outlived the teardown."""
        try:
            async with asyncio.timeout(_REAP_S):
                for part in self._parts:
                    await part.ended()
        except TimeoutError:
            self._log.error("part_outlived_teardown")

    def _give_up(self, failure: Failure) -> None:
        self._failure = self._failure or failure
        self._stopping.set()

    async def _announce(self, readiness: Mapping[str, asyncio.Event]) -> None:
        """Bring the starter model up, wait for all parts, and tell whoever waits for `slice up`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._use_first(readiness))
            for part in self._parts:
                group.create_task(self._in_time(part, readiness[part.name]))
        if self._failure is None:
            self._is_announced = True
            self._journal.write(Mark.READY, "cluster", "ready")

    async def _in_time(self, part: Part, is_ready: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._start_deadline_s):
                await is_ready.wait()
        except TimeoutError:
            self._give_up(
                Failure(
                    "cluster.start_failed",
                    f"the {part.name} was not ready after {self._start_deadline_s:.0f} s",
                    hint=f"its last word: {part.last_words()}",
                )
            )

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
            life = _Life()
            reason = "ended"
            try:
                await self._one_life(part, is_ready, life)
            except Failure as failure:
                # Only a start may be given up: what serves already goes on while this part is tried again.
                if failure.retry is Retry.NEVER and not self._is_announced:
                    self._give_up(failure)
                    return
                reason = str(failure)
            except Exception as error:  # noqa: BLE001 - the outermost frame of a part's care: it must never end
                self._log.error("part_care_failed", name=part.name, exc=error)
                reason = f"could not be started or watched ({type(error).__name__})"
            if self._stopping.is_set():
                return
            if life.ready_at is not None and self._clock.monotonic() - life.ready_at > _STEADY_AFTER_S:
                delay_s = _BACKOFF_FIRST_S
            self._journal.write(Mark.FAILED, part.name, f"{reason}; started again in {delay_s:.1f} s")
            await self._wait(delay_s)
            delay_s = min(_BACKOFF_CAP_S, delay_s * 2)

    async def _one_life(self, part: Part, is_ready: asyncio.Event, life: "_Life") -> None:
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
            guard.brief(f"probe-{part.name}", self._probe(part, is_ready, life))
            ended = await part.ended()
        self._log.warning("part_ended", name=part.name, status=ended.status, failure=str(ended.failure or ""))
        if ended.failure is not None:
            raise ended.failure

    async def _probe(self, part: Part, is_ready: asyncio.Event, life: "_Life") -> None:
        while not await part.is_ready():
            await self._wait(_PROBE_EVERY_S)
            if self._stopping.is_set():
                return
        life.ready_at = self._clock.monotonic()
        self._journal.write(Mark.DONE, part.name, "ready")
        is_ready.set()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
