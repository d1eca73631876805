"""How long this node may take new requests without a word of the controller: counted from what it acknowledged.

Comes in: heartbeats as they are sent and acknowledged, and word that no controller runs. Goes out: a lease in seconds
from now, told to the data plane. Called by `node_agent.session`. A lease runs from the instant at which the
acknowledged heartbeat was *sent*: the controller heard it later, so its own lease of this node ends later than ours.
"""

import math
from collections.abc import Callable

_SENT_MAX = 1000  # unacknowledged heartbeats that are remembered; the session lapses long before

MARGIN_S, MARGIN_SHARE = 2.0, 0.1


def fence_s(lease_s: float) -> float:
    """Return when a node fences itself by when the controller gives it up: max(2 s, 10 %) earlier, both in seconds.

    Source: field notes on reliability, 2.5; for a controller that does not say it (`HelloAck.fence_ms` is 0).
    """
    return max(0.5, lease_s - max(MARGIN_S, MARGIN_SHARE * lease_s))


class Fence:
    """One node's lease over its sessions; `now` is a clock that counts suspends, `leased` hears of each renewal."""

    def __init__(self, now: Callable[[], float], leased: Callable[[float], None]) -> None:
        self._now = now
        self._leased = leased
        self._fence_s = 0.0
        self._sent: dict[int, float] = {}

    def begin(self) -> None:
        """Note that a hello is sent; its sequence number is 0."""
        self._sent = {0: self._now()}

    def open(self, fence_s: float) -> None:
        """Note that the hello was accepted and how many seconds the controller gives."""
        self._fence_s = fence_s
        self.acknowledged(0)

    def extended(self) -> float:
        """Renew the lease because nobody reigns, and return within how many seconds to look again.

        The controller's machine says that no controller runs there: none can give this node up then, and one that
        begins gives every node of former reigns a whole lease first.
        """
        if not self._fence_s:
            return math.inf
        self._leased(self._fence_s)
        return self._fence_s / 3

    def sent(self, sequence: int) -> None:
        """Note that a heartbeat is sent."""
        if len(self._sent) < _SENT_MAX:
            self._sent[sequence] = self._now()

    def acknowledged(self, sequence: int) -> None:
        """Renew the lease by an acknowledged heartbeat; one that was never sent, or twice acknowledged, renews none."""
        sent_at = self._sent.get(sequence)
        if sent_at is None:
            return
        self._sent = {number: at for number, at in self._sent.items() if number > sequence}
        self._leased(self._fence_s - (self._now() - sent_at))
