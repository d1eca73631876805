"""From where each node gets each file that it lacks: pure.

In: the picture. Out: peers, or the word to wait. Called by `controller.reconcile.dispatch`. One download from outside
per content and cluster: while no node that others can reach holds it, one of those that want it is given its source and
the others wait for it as peers.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from controller.fleet.model import Peer
from controller.reconcile.picture import Picture
from core.ids import Sha256
from core.sources import parse_source
from core.states import Desired, NodeState, PullState

PEERS = 3
"""Enough that one may be gone and another be slow."""
_TROUBLED = frozenset({"backoff", "crash_loop", "failed"})
_OF_FILES = ("source.", "format.", "disk.", "hub.")


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a node gets one content: from `peers`, then the source; `is_awaited`: from neither yet."""

    peers: tuple[Peer, ...] = ()
    is_awaited: bool = False


@dataclass(frozen=True, kw_only=True)
class Seeker:
    """A node that wants a content it lacks.

    The smallest by rank brings it first: one that has not failed at it, and of those the oldest wish, so that who has
    begun goes on when others come.
    """

    has_failed: bool
    since: datetime
    wish: str
    node_id: str

    @property
    def rank(self) -> tuple[bool, datetime, str]:
        """What seekers are compared by."""
        return self.has_failed, self.since, self.wish


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Who has what and who seeks what, among the nodes that others can reach (`planes`, those that are ready now)."""

    reachable: frozenset[str] = frozenset()
    planes: Mapping[str, Peer] = field(default_factory=dict)
    held: frozenset[tuple[str, str]] = frozenset()
    holders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bringers: Mapping[str, str] = field(default_factory=dict)

    def way(self, node_id: str, sha256: str) -> Way:
        """Return how `node_id` gets the content `sha256`.

        1. It has it, or no other node can be reached by it: as if it were alone.
        2. Others have it: up to three of them, each node's own order, so that many at once do not ask the same one.
        3. Nobody has it and another node is to bring it: it waits.
        4. It is the one that brings it: the source.
        """
        if (node_id, sha256) in self.held or node_id not in self.reachable:
            return Way()
        others = [holder for holder in self.holders.get(sha256, ()) if holder != node_id]
        if others:
            nearest = sorted(others, key=lambda holder: _draw(node_id, holder, sha256))
            return Way(peers=tuple(self.planes[holder] for holder in nearest[:PEERS]))
        return Way(is_awaited=self.bringers.get(sha256, node_id) != node_id)


def sharing(picture: Picture) -> Sharing:
    """Return who can give what to whom in `picture`."""
    planes = {
        row.node_id: Peer(node_id=row.node_id, host=row.plane_host, port=row.plane_port)
        for row in picture.nodes
        if row.plane_host and row.is_approved and row.state == NodeState.READY.value
    }
    holders: dict[str, list[str]] = {}
    for place in picture.stored:
        if place.node_id in planes and not place.is_leaving:
            holders.setdefault(place.sha256, []).append(place.node_id)
    held = frozenset((place.node_id, place.sha256) for place in picture.stored)
    best: dict[str, Seeker] = {}
    for sha256, seeker in _seekers(picture):
        if seeker.node_id not in planes or (seeker.node_id, sha256) in held:
            continue
        if sha256 not in best or seeker.rank < best[sha256].rank:
            best[sha256] = seeker
    return Sharing(
        reachable=frozenset(row.node_id for row in picture.nodes if row.plane_host and row.is_approved),
        planes=planes,
        held=held,
        holders={sha256: tuple(sorted(nodes)) for sha256, nodes in holders.items()},
        bringers={sha256: seeker.node_id for sha256, seeker in best.items()},
    )


def pinned(source: str) -> Sha256 | None:
    """Return the digest that the source of a pull pins, if it names one file."""
    return parse_source(source).file_sha256


def _seekers(picture: Picture) -> Iterator[tuple[str, Seeker]]:
    for row in picture.replicas:
        if row.desired == Desired.STOP.value:
            continue
        has_failed = row.state in _TROUBLED and row.code.startswith(_OF_FILES)
        seeker = Seeker(has_failed=has_failed, since=row.created_at, wish=row.replica_id, node_id=row.node_id)
        for file in picture.files.get(row.version_id, ()):
            yield file.sha256, seeker
    for copy in picture.copies:
        seeker = Seeker(has_failed=False, since=copy.created_at, wish=copy.copy_id, node_id=copy.node_id)
        for file in picture.files.get(copy.version_id, ()):
            yield file.sha256, seeker
    for pull in picture.pulls:
        sha256 = pinned(pull.source)
        if sha256 and pull.node_id and pull.state != PullState.CANCELLED.value:
            yield (
                sha256,
                Seeker(has_failed=False, since=pull.created_at, wish=pull.pull_id, node_id=pull.node_id),
            )


def _draw(node_id: str, holder: str, sha256: str) -> bytes:
    """Return a number that is the same each time and spreads: rendezvous hashing (Thaler and Ravishankar, 1998)."""
    return hashlib.sha256(f"{node_id}\n{holder}\n{sha256}".encode()).digest()
