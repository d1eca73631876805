"""How good a place is, from 0 to 100, and the best of several.

In: candidates that all have room. Out: one of them, its score and a sentence. Called by `scheduler.plan`. The weights
are ordered so that each preference beats all the smaller ones together: GPU, spread, files at hand, best fit.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from core.devices import DeviceKind
from core.ids import DeviceId, NodeId
from scheduler.feasible import Candidate
from scheduler.snapshot import DeploymentView

GPU_POINTS = 50.0
SPREAD_POINTS = 28.0
FILES_POINTS = 14.0
FIT_POINTS = 8.0


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A candidate with its score (0 to 100) and, for people, what earned it."""

    candidate: Candidate
    score: float
    reason: str


def _plain_points(candidate: Candidate, deployment: DeploymentView) -> float:
    """Return the points that do not depend on where the deployment's other replicas are."""
    total = candidate.device.total_bytes
    left_share = candidate.left_bytes / total if total > 0 else 1.0
    points = FIT_POINTS * (1.0 - min(1.0, left_share))
    points += FILES_POINTS if _has_files(candidate, deployment) else 0.0
    return points + (GPU_POINTS if _is_gpu(candidate) else 0.0)


class Standing:
    """The candidates for one sort of replica, best first, kept in that order while a plan takes their room.

    A thousand nodes are weighed once, and not anew for each of five thousand replicas.
    """

    def __init__(self, candidates: Sequence[Candidate], deployment: DeploymentView) -> None:
        self._deployment = deployment
        seats = sorted(self._seat(candidate) for candidate in candidates)
        self._seats: dict[bool, list[_Seat]] = {sort: [] for sort in (True, False)}
        self._of_node: dict[NodeId, list[_Seat]] = {}
        for seat in seats:
            self._seats[_is_gpu(seat.candidate)].append(seat)
            self._of_node.setdefault(seat.node_id, []).append(seat)

    def __bool__(self) -> bool:
        return bool(self._of_node)

    def renew(self, node_id: NodeId, candidates: Sequence[Candidate]) -> None:
        """Put `candidates`, which are all that a node has now, in the place of what it had."""
        for seat in self._of_node.pop(node_id, ()):
            seats = self._seats[_is_gpu(seat.candidate)]
            del seats[bisect.bisect_left(seats, seat)]
        for candidate in candidates:
            seat = self._seat(candidate)
            bisect.insort(self._seats[_is_gpu(candidate)], seat)
            self._of_node.setdefault(node_id, []).append(seat)

    def best(self, neighbours: Mapping[NodeId, int]) -> Ranked:
        """Return the best of the candidates, of which there must be one; equal scores go to the lowest ids.

        `neighbours` are the deployment's replicas on each node already.
        """
        ranks = [rank for seats in self._seats.values() for rank in _first(seats, neighbours)]
        _, negative, node_id, _, seat = min(ranks)
        points = round(-negative, 6)
        reason = _reason(seat.candidate, points, self._deployment, neighbours.get(node_id, 0))
        return Ranked(candidate=seat.candidate, score=points, reason=reason)

    def _seat(self, candidate: Candidate) -> "_Seat":
        node, points = candidate.node, round(_plain_points(candidate, self._deployment), 6)
        # One that goes silent again and again is the last resort, whatever it has.
        return _Seat(node.is_flapping, -points, node.node_id, candidate.device.device_id, candidate)


class _Seat(NamedTuple):
    """A candidate behind what it is sorted by: no two have the same ids."""

    is_flapping: bool
    negative_points: float
    node_id: NodeId
    device_id: DeviceId
    candidate: Candidate


_Rank = tuple[bool, float, NodeId, DeviceId, _Seat]
"""Smallest first: whether it is flapping, its points negative, its ids; and the seat."""


def _first(seats: Sequence[_Seat], neighbours: Mapping[NodeId, int]) -> list[_Rank]:
    """Return the ranks of the best of `seats` with the points for spread, and of the best before it without them.

    Those alone earn them around which there are no more of the deployment's replicas than around any other of the same
    sort (GPU or CPU). Few nodes have one already, so that the walk ends after as many seats.
    """
    has_empty = any(seat.node_id not in neighbours for seat in seats)
    fewest = 0 if has_empty else min((neighbours[seat.node_id] for seat in seats), default=0)
    ranks: list[_Rank] = []
    for seat in seats:
        is_flapping, negative, node_id, device_id, _ = seat
        if neighbours.get(node_id, 0) <= fewest:
            ranks.append((is_flapping, negative - SPREAD_POINTS, node_id, device_id, seat))
            break
        if not ranks:
            ranks.append((is_flapping, negative, node_id, device_id, seat))
    return ranks


def _is_gpu(candidate: Candidate) -> bool:
    return candidate.device.kind is not DeviceKind.CPU


def _has_files(candidate: Candidate, deployment: DeploymentView) -> bool:
    return candidate.node.file_digests.issuperset(deployment.file_digests)


def _reason(candidate: Candidate, points: float, deployment: DeploymentView, neighbours: int) -> str:
    marks = [
        "a GPU" if _is_gpu(candidate) else "the CPU",
        "no replica of it yet" if neighbours == 0 else f"{neighbours} of its replicas already",
        "the files at hand" if _has_files(candidate, deployment) else "the files to fetch",
    ]
    return f"node {candidate.node.name} scores {points:.0f} of 100: {', '.join(marks)}"
