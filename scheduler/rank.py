"""How good a place is, from 0 to 100, and the best of several.

In: candidates that all have room. Out: one of them, its score and a sentence. Called by `scheduler.plan`. The weights
are ordered so that each preference beats all the smaller ones together: GPU, spread, files at hand, best fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.devices import DeviceKind
from core.ids import NodeId
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


def score(candidate: Candidate, deployment: DeploymentView, *, is_emptiest: bool) -> float:
    """Return the points of `candidate`, 0 to 100.

    `is_emptiest` says that no candidate of the same sort (GPU or CPU) has fewer of the deployment's replicas around it:
    those alone earn the spread.
    """
    return round(_plain_points(candidate, deployment) + (SPREAD_POINTS if is_emptiest else 0.0), 6)


def _plain_points(candidate: Candidate, deployment: DeploymentView) -> float:
    """Return the points that do not depend on where the deployment's other replicas are."""
    total = candidate.device.total_bytes
    left_share = candidate.left_bytes / total if total > 0 else 1.0
    points = FIT_POINTS * (1.0 - min(1.0, left_share))
    points += FILES_POINTS if _has_files(candidate, deployment) else 0.0
    return points + (GPU_POINTS if _is_gpu(candidate) else 0.0)


def best(
    candidates: Sequence[Candidate],
    deployment: DeploymentView,
    neighbours: Mapping[NodeId, int],
    known: dict[int, tuple[float, Candidate]] | None = None,
) -> Ranked:
    """Return the best of `candidates` (not empty); equal scores go to the lowest node id, then device id.

    `neighbours` are the deployment's replicas on each node already; `known` keeps points of candidates, by the identity
    of the value, between two calls for one deployment: a thousand nodes are not weighed anew for each replica.
    """
    plain = {} if known is None else known
    fewest: dict[bool, int] = {}
    seats: list[tuple[Candidate, bool, int, float]] = []
    for candidate in candidates:
        sort, count = _is_gpu(candidate), neighbours.get(candidate.node.node_id, 0)
        fewest[sort] = min(count, fewest.get(sort, count))
        entry = plain.get(id(candidate))
        if entry is None:
            # The candidate is kept beside its points, so that no other value can come to have its identity.
            entry = plain[id(candidate)] = (round(_plain_points(candidate, deployment), 6), candidate)
        seats.append((candidate, sort, count, entry[0]))
    chosen = seats[0][0]
    top: tuple[bool, float] | None = None
    for candidate, sort, count, plain_points in seats:
        points = plain_points + SPREAD_POINTS if count <= fewest[sort] else plain_points
        # One that goes silent again and again is the last resort, whatever it has.
        rank = (candidate.node.is_flapping, -points)
        if top is None or rank < top or (rank == top and _order(candidate) < _order(chosen)):
            top, chosen = rank, candidate
    assert top is not None, "there is a candidate"
    points = round(-top[1], 6)
    return Ranked(
        candidate=chosen,
        score=points,
        reason=_reason(chosen, points, deployment, neighbours.get(chosen.node.node_id, 0)),
    )


def _order(candidate: Candidate) -> tuple[str, str]:
    return candidate.node.node_id, candidate.device.device_id


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
