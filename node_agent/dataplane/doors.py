"""What the node agent tells its data plane: which engines doors may reach, and for how long.

Made by `node_agent.agent`; the fence goes to its session, `tell` to whatever changes on the node. A node without a
plane has one that tells nobody.
"""

from collections.abc import Callable, Iterable

from core.clock import Clock
from node_agent.dataplane.entries import PlaneEntry
from node_agent.dataplane.plane import Plane
from node_agent.fence import Fence


class Doors:
    """Between the replicas of a node, its session and its plane; `changed` tells the session that a report changed."""

    def __init__(self, plane: Plane | None, clock: Clock, changed: Callable[[], None]) -> None:
        self._plane = plane
        self._changed = changed
        self._entries: Callable[[], Iterable[PlaneEntry]] | None = None
        self.fence = Fence(clock.monotonic, self._leased)

    async def open(self, entries: Callable[[], Iterable[PlaneEntry]]) -> None:
        """Begin, once it is known what runs here: before, an adopted engine would seem to be gone."""
        if self._plane is not None:
            self._entries = entries
            self._plane.publish(entries())
            await self._plane.start()

    def tell(self) -> None:
        """Publish the engines as they are now, then let the controller hear of it: doors must find what it tells."""
        if self._plane is not None and self._entries is not None:
            self._plane.publish(self._entries())
        self._changed()

    def renewed(self) -> None:
        """Let the plane show its new certificate."""
        if self._plane is not None:
            self._plane.renewed()

    def revoke(self, serials: Iterable[str]) -> None:
        """Let exactly these certificates be refused, though they are signed and in date."""
        if self._plane is not None:
            self._plane.revoke(serials)

    def _leased(self, seconds: float) -> None:
        if self._plane is not None:
            self._plane.leased_until(seconds)
