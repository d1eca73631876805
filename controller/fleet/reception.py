"""Where hellos wait until they are written: few at once, in batches, nodes that were here before first.

Comes in: hellos from `controller.fleet.service`. Goes out: their rows, written by the `write` that it is given. Who
waits and who is sent away is decided in `controller.fleet.admission`; this holds the queue.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from controller.fleet import admission
from controller.fleet.admission import Bounds, ComesAgain, Desk
from controller.fleet.model import Hello, NodeRow, Refuse
from core.clock import Clock
from core.ids import NodeId


class RefusedError(Exception):
    """A hello was not accepted; `refusal` says why."""

    def __init__(self, refusal: Refuse) -> None:
        self.refusal = refusal
        super().__init__(refusal.message)


@dataclass(kw_only=True, eq=False)
class Knock:
    """One hello that waits for its row, or for why there is none."""

    hello: Hello
    is_remote: bool
    answer: "asyncio.Future[NodeRow | Refuse]" = field(repr=False)

    def tell(self, answer: NodeRow | Refuse) -> None:
        """Answer it, unless its stream has ended meanwhile."""
        if not self.answer.done():
            self.answer.set_result(answer)


Write = Callable[[Sequence[Knock]], Awaitable[None]]
"""Writes a batch and answers each of its knocks; raises nothing."""


class Reception:
    """The queue of hellos; `most_at_once` is the largest number that ever were in handling together."""

    def __init__(self, write: Write, *, clock: Clock, chance: Callable[[], float], bounds: Bounds) -> None:
        self._write = write
        self._clock = clock
        self._chance = chance
        self._bounds = bounds
        self._desk = Desk()
        self._known: dict[NodeId, Knock] = {}
        self._strangers: dict[NodeId, Knock] = {}
        self._event = asyncio.Event()
        self.most_at_once = 0

    def check(self, node_id: NodeId, *, is_known: bool) -> None:
        """See whether there is a place, before anything that costs more is done for the hello.

        Raises:
            RefusedError: `node.controller_busy`.
        """
        self._after(node_id, is_known=is_known)

    def _after(self, node_id: NodeId, *, is_known: bool) -> Desk:
        """Return the desk with one more that waits; one that waits already keeps its place."""
        if node_id in self._queue(is_known=is_known):
            return self._desk
        desk, verdict = admission.knocked(
            self._desk, self._clock.monotonic(), is_known=is_known, chance=self._chance(), bounds=self._bounds
        )
        if isinstance(verdict, ComesAgain):
            self._desk = desk
            raise RefusedError(admission.refusal(verdict, desk))
        return desk

    async def admitted(self, hello: Hello, *, is_remote: bool, is_known: bool) -> NodeRow:
        """Return the row of `hello` when it has been written.

        Raises:
            RefusedError: the hello is not accepted.
        """
        self._desk = self._after(hello.node_id, is_known=is_known)
        queue = self._queue(is_known=is_known)
        answer: asyncio.Future[NodeRow | Refuse] = asyncio.get_running_loop().create_future()
        knock = Knock(hello=hello, is_remote=is_remote, answer=answer)
        if hello.node_id in queue:
            queue[hello.node_id].tell(Refuse(code="node.stale_sequence", message="a newer hello of this node came"))
        queue[hello.node_id] = knock
        self._event.set()
        try:
            found = await answer
        finally:
            if queue.get(hello.node_id) is knock:  # its stream ended before its turn
                del queue[hello.node_id]
                self._desk = admission.left(self._desk, is_known=is_known)
        if isinstance(found, Refuse):
            raise RefusedError(found)
        return found

    async def run(self) -> None:
        """Write what waits, batch by batch, for ever."""
        while True:
            await self._event.wait()
            batch = self._taken()
            if not batch:
                self._event.clear()
                continue
            began = self._clock.monotonic()
            try:
                await self._write(batch)
            finally:
                took_s = self._clock.monotonic() - began
                self._desk = admission.done(self._desk, len(batch), took_s, self._bounds)

    def _taken(self) -> list[Knock]:
        self._desk, known, strangers = admission.taken(self._desk, self._bounds)
        self.most_at_once = max(self.most_at_once, self._desk.handled)
        batch: list[Knock] = []
        for queue, count in ((self._known, known), (self._strangers, strangers)):
            batch += [queue.pop(node_id) for node_id in list(queue)[:count]]
        return batch

    def _queue(self, *, is_known: bool) -> dict[NodeId, Knock]:
        return self._known if is_known else self._strangers
