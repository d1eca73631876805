"""How a replica's row follows what its node reports: pure.

Comes in: the row, the node's report of it (or None), and whether the node has applied the newest desired set. Goes out:
the change to write, or None. Called by `controller.deployments.service.absorb`. It never judges whether a transition
is allowed: the node owns the state, the controller mirrors it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from controller.deployments.model import Replica
from controller.exchange import ReplicaReport
from core.states import Desired, ReplicaState


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a replica's row becomes."""

    state: ReplicaState
    incarnation: int
    restarts: int
    pid: int
    host: str
    port: int
    load_s: float
    code: str
    message: str
    log_tail: Sequence[str]
    base_url: str = ""


def mirrored(row: Replica, report: ReplicaReport | None, *, is_applied: bool) -> Change | None:
    """Return what `row` becomes, or None when nothing changes.

    1. A reported replica takes what is reported; ready without an address counts as starting.
    2. One that is absent from a node that has applied the newest desired set is forgotten there: assigned again,
       unless it was to stop (then the reconcile loop deletes it).
    3. One that is absent from a node that lags behind stays as it is: the node may not know it yet.
    """
    if report is None:
        # Branches 2 and 3.
        if not is_applied or row.desired != Desired.RUN.value or row.state == ReplicaState.ASSIGNED.value:
            return None
        return Change(
            state=ReplicaState.ASSIGNED,
            incarnation=row.incarnation,
            restarts=row.restarts,
            pid=0,
            host="",
            port=0,
            load_s=0.0,
            code="",
            message="its node does not know it any more; it begins again",
            log_tail=(),
        )
    change = _reported(report)
    return None if change == _current(row) else change


def lost(row: Replica, node_name: str) -> Change | None:
    """Return what `row` becomes when its node is silent past its lease, or None when it rests."""
    if row.state in (ReplicaState.LOST.value, ReplicaState.STOPPED.value, ReplicaState.FAILED.value):
        return None
    return Change(
        state=ReplicaState.LOST,
        incarnation=row.incarnation,
        restarts=row.restarts,
        pid=row.pid,
        host=row.host,
        port=row.port,
        load_s=row.load_s,
        code="",
        message=f"node {node_name} is silent; the engine may still run there",
        log_tail=row.log_tail,
        base_url=row.base_url,
    )


def _reported(report: ReplicaReport) -> Change:
    state, message = report.state, report.message
    if state is ReplicaState.READY and not (report.host and report.port):
        state, message = ReplicaState.STARTING, "its node says it is ready but not where"
    return Change(
        state=state,
        incarnation=report.incarnation,
        restarts=report.restarts,
        pid=report.pid,
        host=report.host,
        port=report.port,
        load_s=report.load_s,
        code=report.code,
        message=message,
        log_tail=report.log_tail,
        base_url=report.base_url,
    )


def _current(row: Replica) -> Change:
    return Change(
        state=ReplicaState(row.state),
        incarnation=row.incarnation,
        restarts=row.restarts,
        pid=row.pid,
        host=row.host,
        port=row.port,
        load_s=row.load_s,
        code=row.code,
        message=row.message,
        log_tail=tuple(row.log_tail),
        base_url=row.base_url,
    )
