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


def ranked(candidate: Candidate, deployment: DeploymentView, neighbours: int, fewest: int) -> Ranked:
    """Return the score of `candidate`; `neighbours` are the deployment's replicas on that node already.

    `fewest` are the neighbours of the emptiest candidate of the same sort (GPU or CPU): those alone earn the spread.
    """
    node, device = candidate.node, candidate.device
    has_files = node.file_digests.issuperset(deployment.file_digests)
    is_gpu = _is_gpu(candidate)
    left_share = candidate.left_bytes / device.total_bytes if device.total_bytes > 0 else 1.0
    score = FIT_POINTS * (1.0 - min(1.0, left_share))
    score += SPREAD_POINTS if neighbours <= fewest else 0.0
    score += (FILES_POINTS if has_files else 0.0) + (GPU_POINTS if is_gpu else 0.0)
    marks = ["a GPU" if is_gpu else "the CPU"]
    marks.append("no replica of it yet" if neighbours == 0 else f"{neighbours} of its replicas already")
    marks.append("the files at hand" if has_files else "the files to fetch")
    return Ranked(
        candidate=candidate, score=score, reason=f"node {node.name} scores {score:.0f} of 100: {', '.join(marks)}"
    )


def _is_gpu(candidate: Candidate) -> bool:
    return candidate.device.kind is not DeviceKind.CPU


def best(candidates: Sequence[Candidate], deployment: DeploymentView, neighbours: Mapping[NodeId, int]) -> Ranked:
    """Return the best of `candidates` (not empty); equal scores go to the lowest node id, then device id."""
    around = [(candidate, neighbours.get(candidate.node.node_id, 0)) for candidate in candidates]
    fewest: dict[bool, int] = {}
    for candidate, count in around:
        sort = _is_gpu(candidate)
        fewest[sort] = min(count, fewest.get(sort, count))
    scored = [ranked(candidate, deployment, count, fewest[_is_gpu(candidate)]) for candidate, count in around]
    return min(
        scored,
        key=lambda one: (
            -round(one.score, 6),
            one.candidate.node.node_id,
            one.candidate.device.device_id,
        ),
    )
