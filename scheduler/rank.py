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
    total = candidate.device.total_bytes
    left_share = candidate.left_bytes / total if total > 0 else 1.0
    points = FIT_POINTS * (1.0 - min(1.0, left_share))
    points += SPREAD_POINTS if is_emptiest else 0.0
    points += FILES_POINTS if _has_files(candidate, deployment) else 0.0
    return round(points + (GPU_POINTS if _is_gpu(candidate) else 0.0), 6)


def best(candidates: Sequence[Candidate], deployment: DeploymentView, neighbours: Mapping[NodeId, int]) -> Ranked:
    """Return the best of `candidates` (not empty); equal scores go to the lowest node id, then device id.

    `neighbours` are the deployment's replicas on each node already.
    """
    fewest: dict[bool, int] = {}
    for candidate in candidates:
        sort, count = _is_gpu(candidate), neighbours.get(candidate.node.node_id, 0)
        fewest[sort] = min(count, fewest.get(sort, count))

    def key(candidate: Candidate) -> tuple[bool, float, str, str]:
        is_emptiest = neighbours.get(candidate.node.node_id, 0) <= fewest[_is_gpu(candidate)]
        points = score(candidate, deployment, is_emptiest=is_emptiest)
        # One that goes silent again and again is the last resort, whatever it has.
        return candidate.node.is_flapping, -points, candidate.node.node_id, candidate.device.device_id

    chosen = min(candidates, key=key)
    points = -key(chosen)[1]
    return Ranked(
        candidate=chosen,
        score=points,
        reason=_reason(chosen, points, deployment, neighbours.get(chosen.node.node_id, 0)),
    )


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
