"""One consistent picture of all tables, read in one repeatable-read snapshot, and the scheduler's view of it.

Comes in: a snapshot connection and what is live in memory. Goes out: `Picture`, and `scheduler.snapshot.Snapshot`.
Called by `controller.reconcile.loop`; `seen` is pure.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from adapters.contract import Runtime
from controller.deployments import store as deployment_store
from controller.deployments.model import Deployment, RefusalRow, Replica, footprint_of
from controller.engines import store as engine_store
from controller.engines.model import EngineDefault, EngineWant
from controller.exchange import Observation
from controller.fleet import store as fleet_store
from controller.fleet.model import NodeNow, NodeRow
from controller.identity import store as identity_store
from controller.identity.model import ApiKey
from controller.registry import alias_store, copy_store, file_store
from controller.registry import store as registry_store
from controller.registry.model import Alias, Copy, File, Pull, StoredPlace, Version
from controller.secrets import store as secret_store
from controller.secrets.model import SealedSecret
from core.devices import DeviceKind, DeviceReading
from core.ids import DeploymentId, DeviceId, NodeId, ReplicaId, Sha256
from core.infra import postgres
from core.states import Desired, ReplicaState
from scheduler.snapshot import DeploymentView, DeviceView, NodeView, ReplicaView, Snapshot


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Everything that a pass decides from, as of one instant of the database."""

    nodes: tuple[NodeRow, ...]
    node_files: Mapping[NodeId, frozenset[Sha256]]
    deployments: tuple[Deployment, ...]
    replicas: tuple[Replica, ...]
    refusals: tuple[RefusalRow, ...]
    files: Mapping[str, tuple[File, ...]]
    sources: Mapping[str, str]
    pulls: tuple[Pull, ...]
    keys: tuple[ApiKey, ...]
    aliases: tuple[Alias, ...]
    stored: tuple[StoredPlace, ...] = ()
    copies: tuple[Copy, ...] = ()
    engine_wants: tuple[EngineWant, ...] = ()
    engine_defaults: tuple[EngineDefault, ...] = ()
    secrets: tuple[SealedSecret, ...] = ()
    versions: Mapping[str, Version] = field(default_factory=dict)

    @property
    def secret_marks(self) -> Mapping[str, str]:
        """Something for each secret that changes with its value and says nothing of it."""
        return {secret.name: secret.mark for secret in self.secrets}


async def read(connection: postgres.Connection) -> Picture:
    """Return the picture that `connection`'s snapshot shows."""
    stored = await file_store.stored(connection)
    places: dict[NodeId, set[Sha256]] = {}
    for place in stored:
        places.setdefault(NodeId(place.node_id), set()).add(Sha256(place.sha256))
    files: dict[str, list[File]] = {}
    for file in await registry_store.files(connection):
        files.setdefault(file.version_id, []).append(file)
    versions = {version.version_id: version for version in await registry_store.versions(connection)}
    return Picture(
        nodes=tuple(await fleet_store.nodes(connection)),
        node_files={node: frozenset(digests) for node, digests in places.items()},
        deployments=tuple(await deployment_store.deployments(connection)),
        replicas=tuple(await deployment_store.replicas(connection)),
        refusals=tuple(await deployment_store.refusals(connection)),
        files={version: tuple(of_it) for version, of_it in files.items()},
        sources={ident: version.source for ident, version in versions.items()},
        pulls=tuple(await registry_store.live_pulls(connection)),
        keys=tuple(await identity_store.all_keys(connection)),
        aliases=tuple(await alias_store.aliases(connection)),
        stored=tuple(stored),
        copies=tuple(await copy_store.active(connection)),
        engine_wants=tuple(await engine_store.wants(connection)),
        engine_defaults=tuple(await engine_store.defaults(connection)),
        secrets=tuple(await secret_store.secrets(connection)),
        versions=versions,
    )


def seen(picture: Picture, live: Mapping[NodeId, NodeNow], *, now: datetime, cpu_reserve_bytes: int) -> Snapshot:
    """Return what the scheduler may see of `picture` and of the nodes as they are now."""
    return Views().seen(picture, live, now=now, cpu_reserve_bytes=cpu_reserve_bytes)


class _Known(NamedTuple):
    """A view, and the values that it was made of."""

    row: object
    beside: object
    view: Any


_NOTHING = _Known(None, None, None)


class Views:
    """Makes the scheduler's views, and remembers them: of thousands of rows few are others than in the pass before.

    A view is a pure function of a row and what stands beside it, so that as long as both are equal to those of the last
    call the view of the last call is given again. Nothing is kept of rows that a picture no longer has.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, _Known] = {}
        self._devices: dict[str, _Known] = {}
        self._deployments: dict[str, _Known] = {}
        self._replicas: dict[str, _Known] = {}

    def seen(
        self, picture: Picture, live: Mapping[NodeId, NodeNow], *, now: datetime, cpu_reserve_bytes: int
    ) -> Snapshot:
        """Return what `seen` returns."""
        here = [(row, live[NodeId(row.node_id)]) for row in picture.nodes if NodeId(row.node_id) in live]
        facts = _views(self._nodes, ((row.node_id, row, None) for row, _ in here), _facts)
        devices = _views(self._devices, ((row.node_id, one.devices, None) for row, one in here), _devices)
        deployments = _views(
            self._deployments,
            ((row.deployment_id, row, picture.files.get(row.version_id, ())) for row in picture.deployments),
            _deployment,
        )
        observations: dict[str, Observation | None] = {node_id: one.observation for node_id, one in live.items()}
        replicas = self._replicas_of(picture, observations)
        self._nodes, self._devices, self._deployments, self._replicas = facts, devices, deployments, replicas
        return Snapshot(
            now=now,
            nodes=tuple(
                _node(row, one, facts[row.node_id].view, devices[row.node_id].view, picture) for row, one in here
            ),
            deployments=tuple(known.view for known in deployments.values()),
            replicas=tuple(known.view for known in replicas.values()),
            cpu_reserve_bytes=cpu_reserve_bytes,
        )

    def _replicas_of(self, picture: Picture, observations: Mapping[str, Observation | None]) -> dict[str, _Known]:
        # As `_views`, whose generator would cost as much as all the rest: most rows are those.
        views: dict[str, _Known] = {}
        others: list[tuple[str, Replica, Observation | None]] = []
        known, beside_of = self._replicas, observations.get
        for row in picture.replicas:
            name, beside = row.replica_id, beside_of(row.node_id)
            last = known.get(name)
            if last is not None and last[0] is row and last[1] is beside:
                views[name] = last
            else:
                views[name] = _NOTHING
                others.append((name, row, beside))
        views.update(_views(known, others, _replica))
        return views


RowT = TypeVar("RowT")
BesideT = TypeVar("BesideT")


def _views(
    known: Mapping[str, _Known], rows: Iterable[tuple[str, RowT, BesideT]], view: Callable[[RowT, BesideT], object]
) -> dict[str, _Known]:
    """Return what each of `rows` is seen as, by its id: as before, or made anew where something is different."""
    views: dict[str, _Known] = {}
    for name, row, beside in rows:
        last = known.get(name)
        if last is not None and row is last.row and beside is last.beside:
            views[name] = last
            continue
        is_same = last is not None and row == last.row and beside == last.beside
        # The newest values are kept, so that the next comparison is one of identity where it can be.
        views[name] = _Known(row, beside, last.view if last is not None and is_same else view(row, beside))
    return views


class _Facts(NamedTuple):
    """What a node's row says of engines and containers."""

    engines: Mapping[str, frozenset[DeviceKind]]
    engine_reasons: Mapping[str, str]
    container_fault: str


def _facts(row: NodeRow, _: None) -> _Facts:
    usable = [fact for fact in row.engines if fact["is_usable"]]
    return _Facts(
        engines={str(fact["engine"]): frozenset(DeviceKind(kind) for kind in fact["device_kinds"]) for fact in usable},
        engine_reasons={str(fact["engine"]): str(fact["reason"]) for fact in row.engines if not fact["is_usable"]},
        container_fault=_container_fault(row.labels),
    )


def _devices(readings: Sequence[DeviceReading], _: None) -> tuple[DeviceView, ...]:
    return tuple(
        DeviceView(
            device_id=device.device_id, kind=device.kind, total_bytes=device.total_bytes, free_bytes=device.free_bytes
        )
        for device in readings
    )


def _node(row: NodeRow, now: NodeNow, facts: _Facts, devices: tuple[DeviceView, ...], picture: Picture) -> NodeView:
    return NodeView(
        node_id=NodeId(row.node_id),
        name=row.name,
        state=now.state,
        is_cordoned=row.is_cordoned,
        is_approved=row.is_approved,
        is_drain_forced=row.is_drain_forced,
        silent_s=now.silent_s,
        devices=devices,
        file_digests=picture.node_files.get(NodeId(row.node_id), frozenset()),
        engines=facts.engines,
        container_fault=facts.container_fault,
        is_held=now.is_held,
        is_flapping=now.is_flapping,
        returned_s=now.returned_s,
        engine_reasons=facts.engine_reasons,
    )


def _container_fault(labels: Mapping[str, str]) -> str:
    """Return why the node can run no container; its agent says so in labels (`node_agent.containers.host`)."""
    if "container.program" in labels:
        return ""
    return labels.get("container.fault") or "it has neither podman nor docker"


def _deployment(row: Deployment, files: Sequence[File]) -> DeploymentView:
    return DeploymentView(
        deployment_id=DeploymentId(row.deployment_id),
        name=row.name,
        generation=row.spec_generation,
        replicas=row.replicas if row.is_enabled else 0,
        engine=row.engine,
        footprint=footprint_of(row.footprint),
        file_digests=tuple(Sha256(file.sha256) for file in files),
        is_deleting=row.is_deleting,
        node_name=row.node_name,
        is_external=row.runtime == Runtime.EXTERNAL,
        is_contained=row.runtime == Runtime.CONTAINER,
    )


def _replica(row: Replica, observation: Observation | None) -> ReplicaView:
    reports = observation.replicas if observation is not None else ()
    measured = next((report.memory_bytes for report in reports if report.replica_id == row.replica_id), 0)
    return ReplicaView(
        replica_id=ReplicaId(row.replica_id),
        deployment_id=DeploymentId(row.deployment_id),
        generation=row.spec_generation,
        node_id=NodeId(row.node_id),
        state=ReplicaState(row.state),
        desired=Desired(row.desired),
        promises={DeviceId(device): int(count) for device, count in row.promises.items()},
        measured_bytes=measured,
        created_at=row.created_at,
        is_leaving=row.is_leaving,
        move_to=NodeId(row.move_to) if row.move_to else None,
        move_since=row.move_since,
        restarts=row.restarts,
        succeeds=ReplicaId(row.succeeds) if row.succeeds else None,
    )
