"""Whether another machine's data plane still answers while all of its connections say nothing.

Comes in: the connections at work to data planes. Goes out: the end of those whose machine is suspended, or hangs: its
kernel may go on acknowledging, so no TCP timer ends them, and their requests would wait for the door's longest
timeouts. Owned by the pool (`upstream`), run by `door`. It must not judge a machine that says anything at all: a byte
on any connection, a handshake, a refusal. Only silence counts, to handshakes too.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from gateway.places import Plane

SILENT_S = 4.0
"""Silence of a machine after which it is asked, and again each time so much has passed: a long prompt is silent too."""
ANSWER_S = 3.0
"""How long one handshake may take; a machine under full load needs tenths of a second."""
TRIES = 2
_LOOK_S = 1.0


class AtWork(Protocol):
    """A connection whose reply is not whole yet; instants are monotonic readings."""

    @property
    def sent_at(self) -> float:
        """When its request was sent."""

    @property
    def heard_at(self) -> float:
        """When it last heard anything, 0 before a first byte."""

    def lose(self, reason: str) -> None:
        """End it and its reply."""


class Pulse:
    """Asks silent machines; `answers(plane)` returns whether it said anything within `ANSWER_S`.

    `now` is the clock of the connections' instants, which does not count a suspend of this machine: it is nobody's
    silence.
    """

    def __init__(self, answers: Callable[[Plane], Awaitable[bool]], now: Callable[[], float]) -> None:
        self._answers = answers
        self._now = now
        self._at_work: dict[Plane, set[AtWork]] = {}
        self._answered_at: dict[Plane, float] = {}
        self._has_work = asyncio.Event()

    def begin(self, plane: Plane, connection: AtWork) -> None:
        """Note that a request was sent."""
        self._at_work.setdefault(plane, set()).add(connection)
        self._has_work.set()

    def end(self, plane: Plane, connection: AtWork) -> None:
        """Note that its reply has ended, however; safe to call twice."""
        connections = self._at_work.get(plane, set())
        connections.discard(connection)
        if not connections:
            self._at_work.pop(plane, None)
            self._answered_at.pop(plane, None)
            if not self._at_work:
                self._has_work.clear()

    async def run(self) -> None:
        """Look once a second while anything is at work, until cancelled."""
        while True:
            await self._has_work.wait()
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Ask every machine that has been silent for `SILENT_S`, all at once, and end what waits for a dead one."""
        now = self._now()
        silent = [plane for plane in self._at_work if now - self._silent_since(plane) >= SILENT_S]
        await asyncio.gather(*(self._examine(plane, now) for plane in silent))

    async def _examine(self, plane: Plane, asked_at: float) -> None:
        for _ in range(TRIES):
            if await self._answers(plane):
                if plane in self._at_work:
                    self._answered_at[plane] = self._now()
                return
        connections = self._of(plane)
        if all(connection.heard_at <= asked_at for connection in connections):
            for connection in connections:
                if connection.sent_at <= asked_at:
                    connection.lose("its machine does not answer")

    def _silent_since(self, plane: Plane) -> float:
        """Return since when a machine owes a word: what is sent to it meanwhile is no word of it."""
        connections = self._of(plane)
        owed_since = min(connection.sent_at for connection in connections)
        heard_at = max(connection.heard_at for connection in connections)
        return max(owed_since, heard_at, self._answered_at.get(plane, 0.0))

    def _of(self, plane: Plane) -> tuple[AtWork, ...]:
        return tuple(self._at_work.get(plane, ()))
