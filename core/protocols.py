"""Which versions of slice.node.v1 this release speaks, and what is to be done where two ends have none in common.

Pure. Comes in: what two ends speak. Goes out: the version of their session, or a `Failure` with the next step. Called
by both ends: `controller.fleet.session`, `node_agent.session`, `cli.joined.admission`.

| version | since | what it is |
|---|---|---|
| 1 | the first release | readings of devices ride in heartbeats; no version in HelloAck, no Revoked |
| 2 | this release | SendTelemetry carries the readings, heartbeats none; Revoked; HelloAck says the version |

A release speaks its own version and the one before, so that nodes and controller can be upgraded one after the other.
"""

from dataclasses import dataclass

from core.errors import Failure

TELEMETRY_APART = 2
"""From this version on readings do not ride in heartbeats."""
REVOCATIONS = 2
"""From this version on a node is told of revoked certificates."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """The versions from `oldest` to `newest`, both included; from a stranger it may be any two numbers."""

    oldest: int
    newest: int

    def __str__(self) -> str:
        """Return it in words."""
        return str(self.oldest) if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


SPOKEN = Span(oldest=1, newest=2)
"""What this release speaks: its own version, and that of the release before."""


def agreed(one: Span, other: Span) -> int | None:
    """Return the newest version that both speak, or None."""
    newest = min(one.newest, other.newest)
    return newest if newest >= max(one.oldest, other.oldest) else None


def fault(*, controller: Span, node: Span) -> Failure | None:
    """Return why a controller and a node agent cannot talk and which is to be upgraded first; None when they can."""
    if agreed(controller, node) is not None:
        return None
    both = f"the controller speaks protocol {controller}, the node agent {node}"
    if node.oldest > controller.newest and node.newest >= node.oldest:
        return Failure(
            "node.protocol_too_new",
            both,
            hint="upgrade the controller first: it takes node agents of its own release and of the one before",
        )
    return Failure(
        "node.protocol_too_old",
        both,
        hint="upgrade the node agent first, to the controller's release or the one before it",
    )


def accepted(told: int, ours: Span) -> int:
    """Return the version of a session whose controller answered `told`, 0 when it said none: it is of version 1 then.

    Raises:
        Failure: `node.protocol_too_old` or `node.protocol_too_new` when it is none that we offered.
    """
    version = told or 1
    found = fault(controller=Span(oldest=version, newest=version), node=ours)
    if found is not None:
        raise found
    return version
