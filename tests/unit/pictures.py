"""Makes snapshots for the scheduler's tests: short words for nodes, deployments and replicas, and `applied`."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from core.devices import DeviceKind
from core.footprint import UNKNOWN_FOOTPRINT, Footprint, Provenance
from core.ids import DeploymentId, DeviceId, NodeId, ReplicaId, Sha256
from core.states import Desired, NodeState, ReplicaState
from scheduler.outcome import Plan
from scheduler.snapshot import DeploymentView, DeviceView, NodeView, ReplicaView, Snapshot

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
CPU = DeviceId("cpu")
CPU_ONLY = frozenset({DeviceKind.CPU})
FILE = Sha256("a" * 64)


def cpu(free: int = 1000, total: int = 1000) -> DeviceView:
    return DeviceView(device_id=CPU, kind=DeviceKind.CPU, total_bytes=total, free_bytes=free)


def gpu(name: str = "gpu0", free: int = 1000, total: int = 1000) -> DeviceView:
    return DeviceView(device_id=DeviceId(name), kind=DeviceKind.NVIDIA, total_bytes=total, free_bytes=free)


def node(name: str, *devices: DeviceView, state: NodeState = NodeState.READY, **more: object) -> NodeView:
    fields: dict = {
        "node_id": NodeId(f"nod_{name}"),
        "name": name,
        "state": state,
        "is_cordoned": False,
        "silent_s": 0.5 if state is NodeState.READY else 9.4,
        "devices": devices or (cpu(),),
        "file_digests": frozenset(),
        "engines": {"fake": frozenset({DeviceKind.CPU, DeviceKind.NVIDIA}), "llamacpp": CPU_ONLY},
    }
    return NodeView(**{**fields, **more})


def needs(count: int | None) -> Footprint:
    if count is None:
        return UNKNOWN_FOOTPRINT
    return Footprint(
        weights_bytes=count, kv_cache_bytes=0, compute_bytes=0, overhead_bytes=0, provenance=Provenance.COMPUTED
    )


def deployment(name: str = "smol", replicas: int = 1, need: int | None = 100, **more: object) -> DeploymentView:
    fields: dict = {
        "deployment_id": DeploymentId(f"dep_{name}"),
        "name": name,
        "generation": 1,
        "replicas": replicas,
        "engine": "fake",
        "footprint": needs(need),
        "file_digests": (FILE,),
        "is_deleting": False,
    }
    return DeploymentView(**{**fields, **more})


def replica(
    name: str,
    on: str,
    state: ReplicaState = ReplicaState.READY,
    *,
    of: str = "smol",
    age_s: float = 60.0,
    promise: int = 100,
    measured: int | None = None,
    **more: object,
) -> ReplicaView:
    is_using = state in (ReplicaState.READY, ReplicaState.UNHEALTHY, ReplicaState.LOST, ReplicaState.STOPPING)
    fields: dict = {
        "replica_id": ReplicaId(f"rep_{name}"),
        "deployment_id": DeploymentId(f"dep_{of}"),
        "generation": 1,
        "node_id": NodeId(f"nod_{on}"),
        "state": state,
        "desired": Desired.RUN,
        "promises": {CPU: promise},
        "measured_bytes": measured if measured is not None else (promise if is_using else 0),
        "created_at": NOW - timedelta(seconds=age_s),
    }
    return ReplicaView(**{**fields, **more})


def picture(*things: NodeView | DeploymentView | ReplicaView, reserve: int = 0) -> Snapshot:
    return Snapshot(
        now=NOW,
        nodes=tuple(one for one in things if isinstance(one, NodeView)),
        deployments=tuple(one for one in things if isinstance(one, DeploymentView)),
        replicas=tuple(one for one in things if isinstance(one, ReplicaView)),
        cpu_reserve_bytes=reserve,
    )


def applied(snapshot: Snapshot, plan: Plan) -> Snapshot:
    """Return `snapshot` as it is right after `plan` was committed and before any node did anything."""
    stopped = {stop.replica_id for stop in plan.stops}
    kept = [replace(one, desired=Desired.STOP) if one.replica_id in stopped else one for one in snapshot.replicas]
    known = {one.replica_id for one in kept}
    names = (name for number in itertools.count() if (name := ReplicaId(f"rep_new{number}")) not in known)
    fresh = [
        ReplicaView(
            replica_id=name,
            deployment_id=start.deployment_id,
            generation=start.generation,
            node_id=start.node_id,
            state=ReplicaState.ASSIGNED,
            desired=Desired.RUN,
            promises=start.promises,
            measured_bytes=0,
            created_at=snapshot.now,
            succeeds=start.succeeds,
        )
        for start, name in zip(plan.starts, names, strict=False)
    ]
    return replace(snapshot, replicas=(*kept, *fresh))


def settled(snapshot: Snapshot, states: Mapping[ReplicaId, ReplicaState] | None = None) -> Snapshot:
    """Return `snapshot` after the nodes did what they were told: stopped ones are gone, the others are ready.

    `states` overrides what became of a replica.
    """
    kept = []
    for one in snapshot.replicas:
        if one.desired is not Desired.RUN:
            continue
        state = (states or {}).get(one.replica_id)
        if state is None:
            moving = one.state in (ReplicaState.ASSIGNED, ReplicaState.STARTING, ReplicaState.FETCHING)
            state = ReplicaState.READY if moving else one.state
        is_using = state in (ReplicaState.READY, ReplicaState.UNHEALTHY)
        kept.append(replace(one, state=state, measured_bytes=sum(one.promises.values()) if is_using else 0))
    return replace(snapshot, replicas=tuple(kept))
