"""How each file that is wanted here may be had at this moment, as the controller's newest word has it.

Comes in: every file of each desired set. Goes out: an order with the ways of now, after a wait while there are none: of
the nodes that want one content only one is given its source, the others are given peers when it has come there. Filled
by `node_agent.supervisor`, asked by `node_agent.files.pulls`, on one event loop.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from core.errors import Failure
from node_agent.files.wants import FileOrder

PATIENCE_S = 600.0
"""After so long without a way the order fails, so that its replica or pull says why it does not go on."""


class Ways:
    """The newest word on each digest; of one without a word the order itself is believed."""

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._orders: dict[str, FileOrder] = {}
        self._news = asyncio.Event()

    def take(self, orders: Iterable[FileOrder]) -> None:
        """Take what is wanted now, all of it."""
        self._orders = {}
        for order in orders:
            if order.sha256 and not self._has_way(order.sha256):
                self._orders[order.sha256] = order
        self._news.set()
        self._news = asyncio.Event()

    def _has_way(self, sha256: str) -> bool:
        known = self._orders.get(sha256)
        return known is not None and not known.is_awaited

    async def usable(self, order: FileOrder) -> FileOrder:
        """Return `order` with the ways of now; waits while another node is to bring the content first.

        Raises:
            Failure: `source.unreachable` when there was none for ten minutes.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                while (known := self._orders.get(order.sha256)) is not None and known.is_awaited:
                    await self._news.wait()
        except TimeoutError:
            raise Failure(
                "source.unreachable",
                f"another node was to bring {order.path or order.sha256[:12]} first and has not done so",
                hint="`slice ps` and `slice model where` show how far it is",
            ) from None
        return order if known is None else replace(order, source=known.source, peers=known.peers)
