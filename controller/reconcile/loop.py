"""The only loop that changes what runs: absorb, look, send, publish, plan, commit - then wait.

Comes in: wake-ups from everybody, and instants to wake at. Goes out: rows, desired sets, route tables. Every pass is
idempotent, so a pass that fails half-way is repaired by the next one. See design.md beside this file.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import psycopg

from controller.fleet.service import Fleet
from controller.leadership import LeadershipLostError
from controller.reconcile import picture as pictures
from controller.reconcile import publish
from controller.reconcile.absorb import Absorb
from controller.reconcile.commit import Commit, StalePlanError
from controller.reconcile.dispatch import Dispatch
from controller.reconcile.lifecycle import Steps, steps
from controller.reconcile.relief import relief
from controller.routes.service import Routes
from controller.secrets.vault import Vault
from controller.wakeups import LoopWakeups
from core.clock import Clock
from core.errors import Failure
from core.infra import postgres
from core.infra.logs import Log
from scheduler.outcome import Plan
from scheduler.snapshot import Snapshot

IDLE_S = 15.0
"""With nothing to do the loop still looks so often, should a wake-up have been forgotten somewhere."""
REFUSED_S = 3.0
"""While something waits for room: free memory changes without an event of ours."""
RETRY_S = 1.0
"""After a pass that failed, e.g. without a database."""
PASSES_AT_ONCE = 25
"""A commit asks for another pass; so many in a row mean that two passes undo each other."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What the loop needs to know besides the services; bytes and seconds."""

    cpu_reserve_bytes: int
    drain_timeout_s: float
    engine_seed: bytes
    disk_pressure_bytes: int = 0
    own_node_id: Callable[[], str] = str
    """Returns the id of the node on the controller's and the doors' machine, "" while there is none."""


class PassCounts:
    """What the loop did so far, for /metrics."""

    def __init__(self) -> None:
        self.passes = 0
        self.stale = 0
        self.failed = 0
        self.last_s = 0.0
        self.total_s = 0.0
        self.is_storage_up = True
        self.replica_states: dict[str, int] = {}


class ReconcileLoop:
    """Owns every decision; only one task runs it."""

    def __init__(
        self,
        *,
        config: LoopConfig,
        database: postgres.Database,
        wakeups: LoopWakeups,
        fleet: Fleet,
        routes: Routes,
        absorb: Absorb,
        commit: Commit,
        dispatch: Dispatch,
        vault: Vault,
        planner: Callable[[Snapshot], Plan],
        clock: Clock,
        log: Log,
    ) -> None:
        self._config = config
        self._database = database
        self._wakeups = wakeups
        self._fleet = fleet
        self._routes = routes
        self._absorb = absorb
        self._commit = commit
        self._dispatch = dispatch
        self._vault = vault
        self._unreadable: frozenset[str] = frozenset()
        self._planner = planner
        self._clock = clock
        self._log = log
        self._views = pictures.Views()
        self.counts = PassCounts()

    async def run(self) -> None:
        """Reconcile for ever.

        Raises:
            LeadershipLostError: another controller reigns, so this one must not decide any more.
        """
        while True:
            wait_s = await self._passes()
            await self._wakeups.take(wait_s)

    async def _passes(self) -> float:
        try:
            for _ in range(PASSES_AT_ONCE):
                changed, wait_s = await self.one_pass()
                self._storage_is(up=True)
                if not changed:
                    return wait_s
            self._log.warning("reconcile_restless", passes=PASSES_AT_ONCE)
        except LeadershipLostError:
            raise
        except Failure as failure:
            self._storage_is(up=False, code=failure.code)
        except psycopg.Error as error:
            # A fault of ours in one row must not take the admin API down with the loop.
            self.counts.failed += 1
            self._log.error("reconcile_failed", exc=error)
        return RETRY_S

    async def one_pass(self) -> tuple[bool, float]:
        """Make one pass; return whether it changed something, and how many seconds may pass before the next.

        Raises:
            LeadershipLostError: another controller reigns.
            Failure: `storage.unavailable`.
        """
        began = time.perf_counter()
        live = self._fleet.nodes()
        await self._absorb.write(live, self._fleet.brake)
        async with self._database.snapshot() as connection:
            picture = await pictures.read(connection)
        self.counts.replica_states = dict(Counter(row.state for row in picture.replicas))
        live = self._fleet.nodes()
        lost_s = self._fleet.timers.lost_s
        self._open_secrets(picture)
        await self._dispatch.send(picture, live)
        table = publish.route_table(
            picture,
            live,
            lost_s=lost_s,
            engine_seed=self._config.engine_seed,
            secrets=self._vault.values(),
            doors_node=self._config.own_node_id(),
        )
        self._routes.publish(table, publish.unrouted(picture))
        now = self._clock.now()
        plan = self._planner(self._views.seen(picture, live, now=now, cpu_reserve_bytes=self._config.cpu_reserve_bytes))
        following = steps(
            picture,
            live,
            now=now,
            lost_s=lost_s,
            drain_timeout_s=self._config.drain_timeout_s,
            is_drained=self._routes.is_drained,
        )
        leaving = relief(picture, live, now=now, disk_pressure_bytes=self._config.disk_pressure_bytes)
        following = replace(following, relief=leaving)
        try:
            changed = await self._commit.write(picture, live, plan, following) > 0
        except StalePlanError:
            self.counts.stale += 1
            changed = True
        self._count(time.perf_counter() - began)
        return changed, _wait_s(now, plan, following)

    def _open_secrets(self, picture: pictures.Picture) -> None:
        faults = self._vault.take(picture.secrets)
        messages = frozenset(fault.message for fault in faults)
        for message in sorted(messages - self._unreadable):
            self._log.error("secret_unreadable", message=message)
        self._unreadable = messages

    def _count(self, took_s: float) -> None:
        self.counts.passes += 1
        self.counts.last_s = took_s
        self.counts.total_s += took_s

    def _storage_is(self, *, up: bool, code: str = "") -> None:
        self._fleet.storage_is(up=up)
        if not up:
            self.counts.failed += 1
        if self.counts.is_storage_up != up:
            self.counts.is_storage_up = up
            self._log.warning("storage_returned" if up else "storage_lost", code=code)


def _wait_s(now: datetime, plan: Plan, following: Steps) -> float:
    wait_s = REFUSED_S if plan.refusals or plan.stuck else IDLE_S
    for instant in (plan.wake_at, following.wake_at):
        if instant is not None:
            wait_s = min(wait_s, max(0.05, (instant - now).total_seconds()))
    return wait_s
