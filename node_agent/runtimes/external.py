"""An engine that runs elsewhere: it is probed and reported, never started, never ended.

Comes in: a replica's seat, whose adapter says where the engine is. Goes out: `ProbePassed` and `ProbeFailed`. There is
no shim, no port and no log. The node agent's end changes nothing for the engine; the next one takes it up where its
`launch.json` says.
"""

import asyncio
import contextlib
from dataclasses import replace

from adapters.contract import External, Health, Remote
from core.errors import Failure
from core.origins import Origin, parse_base_url
from node_agent import launching, lifecycle, shim_client
from node_agent.launching import Started
from node_agent.probe import ProbeError
from node_agent.remote_probe import RemoteProbe
from node_agent.replica import Bounds
from node_agent.runtimes.contract import Found, Seat, Whereabouts

_FIRST_PAUSE_S = 1.0
"""After a failed probe, so that a short fault is soon over and a long one soon known. It doubles up to the interval."""


class ExternalEngine:
    """One remote endpoint."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._around = seat.around
        self._key = seat.want.engine_key
        self._remote: Remote | None = None
        self._origin: Origin | None = None
        self._started: Started | None = None
        self._probe = RemoteProbe()
        self._watcher: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def bounds(self) -> Bounds:
        """Return that it is nobody's to restart."""
        return Bounds(failures_to_unhealthy=self._health().failures_to_unhealthy, is_ours=False)

    def _health(self) -> Health:
        try:
            return self._around.adapter(self._seat.want.engine).health
        except Failure:  # an engine unknown to this release is refused at its launch
            return Health(path="/")

    def whereabouts(self) -> Whereabouts:
        """Return its base URL, and host and port for those who cannot read one."""
        if self._origin is None:
            return Whereabouts()
        return Whereabouts(base_url=self._origin.url, host=self._origin.host, port=self._origin.port)

    async def take_up(self) -> Found:
        """Return the incarnation under which an earlier node agent knew it, if it did."""
        started = await asyncio.to_thread(launching.load_started, self._seat.directory)
        if started is None:
            return Found()
        try:
            self._find()
        except Failure:  # settings that this release does not take: refused when it is begun anew
            return Found(incarnation=started.incarnation)
        self._started = started
        adopted = lifecycle.Adopted(incarnation=started.incarnation, age_s=0.0, load_s=started.load_s)
        return Found(incarnation=started.incarnation, adopted=adopted)

    async def fetch(self) -> None:
        """Do nothing: there is no file."""

    async def install(self) -> None:
        """Do nothing: there is no program."""

    async def until_memory_is_back(self) -> None:
        """Do nothing: what it weighs nobody here sees."""

    async def spawn(self, incarnation: int) -> None:
        """Find out where it is.

        Raises:
            Failure: `engine.setting_invalid`, `engine.runtime_unsupported`, `shim.start_failed` when the disk is full.
        """
        self._find()
        self._started = Started(
            incarnation=incarnation,
            port=0,
            boot_id=shim_client.boot_id(),
            spawned_at=self._around.clock.monotonic(),
        )
        try:
            await asyncio.to_thread(launching.save_started, self._seat.directory, self._started)
        except OSError as error:
            reason = f"the files of {self._seat.want.replica_id} cannot be written: {error.strerror}"
            raise Failure("shim.start_failed", reason, hint="check free space and modes") from error

    def _find(self) -> None:
        adapter = self._around.adapter(self._seat.want.engine)
        if not isinstance(adapter, External):
            raise Failure(
                "engine.runtime_unsupported",
                f"{adapter.name} does not know where an engine that runs elsewhere is",
                hint="deploy it with another runtime",
            )
        self._remote = adapter.remote(launching.settings_of(self._seat.want))
        self._origin = parse_base_url(self._remote.base_url)

    def watch(self, tasks: asyncio.TaskGroup) -> None:
        """Probe it for ever."""
        self._watcher = tasks.create_task(self._watch_health(), name="watch health")

    async def _watch_health(self) -> None:
        assert self._remote is not None, "it was found before it is watched"
        assert self._origin is not None
        health, path = self._health(), self._remote.probe_path
        failures = 0
        while True:
            self._wake.clear()
            event = await self._probed(self._origin, path, health)
            self._seat.tell(event)
            failures = 0 if isinstance(event, lifecycle.ProbePassed) else min(failures + 1, 16)
            soon_s = _FIRST_PAUSE_S * 2.0 ** (failures - 1) if failures else health.probe_interval_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(soon_s, health.probe_interval_s))

    async def _probed(self, origin: Origin, path: str, health: Health) -> lifecycle.Happened:
        try:
            status = await self._probe.status_of(origin, path, self._key, health.probe_timeout_s)
        except ProbeError as error:
            return lifecycle.ProbeFailed(reason=str(error))
        if status == health.ready_status:
            return lifecycle.ProbePassed()
        if status in (401, 403):
            said = "it refuses our key" if self._key else "it asks for a key and the deployment names no secret"
            return lifecycle.ProbeFailed(reason=f"{said} ({status})")
        if 300 <= status < 400:
            return lifecycle.ProbeFailed(reason=f"it redirects ({status}), which is not followed: set its final URL")
        return lifecycle.ProbeFailed(reason=f"it answers {status} to GET {path}")

    async def end(self, grace_s: float) -> None:
        """Forget it: it goes on without us."""
        if self._watcher is not None:
            self._watcher.cancel()
        self.clear()
        # Forgotten on disk too, so that a next replica of this id begins anew.
        await asyncio.to_thread((self._seat.directory / "launch.json").unlink, missing_ok=True)
        self._seat.tell(lifecycle.TreeGone())

    async def note_ready(self, load_s: float) -> None:
        """Write down that it was well, for the next node agent."""
        if self._started is None or self._started.load_s:
            return
        self._started = replace(self._started, load_s=load_s)
        try:
            await asyncio.to_thread(launching.save_started, self._seat.directory, self._started)
        except OSError as error:
            self._around.log.warning("load_not_noted", replica=self._seat.want.replica_id, reason=str(error))

    def renew_key(self, key: str) -> None:
        """Probe with `key` from now on, at once."""
        if key != self._key:
            self._key = key
            self._wake.set()

    def clear(self) -> None:
        """Forget where it was."""
        self._remote, self._origin = None, None
