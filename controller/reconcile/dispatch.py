"""Sends each node its whole desired set, under a generation that grows exactly when its content does.

Comes in: the picture and the live nodes. Goes out: `DesiredSet`s through the fleet, and each node's generation with the
digest of its content in its row, so that a restarted controller goes on counting where the last one stopped.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from adapters import registry as engines
from controller.deployments.model import Deployment, Replica
from controller.engines.model import EngineWant
from controller.fleet import store as fleet_store
from controller.fleet.model import DesiredSet, EngineOrder, FileOrder, NodeNow, ReplicaOrder
from controller.fleet.service import Fleet
from controller.leadership import Leadership
from controller.reconcile.picture import Picture
from controller.reconcile.sharing import Sharing, pinned, sharing
from controller.registry import copies
from controller.registry.model import Copy, File, Pull, StoredPlace
from controller.registry.pulls import formats_of
from controller.registry.stores import is_free
from core.ids import DeviceId, NodeId, PullId, ReplicaId, Sha256
from core.infra import postgres
from core.states import Desired, NodeState, PullState

OnNode = TypeVar("OnNode", Replica, Pull, Copy, StoredPlace, EngineWant)


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What one node should hold, without a number yet."""

    replicas: tuple[ReplicaOrder, ...]
    files: tuple[FileOrder, ...]
    removed_files: tuple[Sha256, ...] = ()
    engines: tuple[EngineOrder, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 of the content in a canonical form."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Index:
    """What of a picture concerns each node, by its id: a thousand nodes must not mean a thousand looks through all."""

    unapproved: frozenset[str]
    deployments: Mapping[str, Deployment]
    replicas: Mapping[str, Sequence[Replica]]
    pulls: Mapping[str | None, Sequence[Pull]]
    copies: Mapping[str, Sequence[Copy]]
    leaving: Mapping[str, Sequence[StoredPlace]]
    engines: Mapping[str, Sequence[EngineWant]]


def indexed(picture: Picture) -> Index:
    """Return the index of `picture`."""
    return Index(
        unapproved=frozenset(row.node_id for row in picture.nodes if not row.is_approved),
        deployments={row.deployment_id: row for row in picture.deployments},
        replicas=_grouped(picture.replicas),
        pulls=_grouped(picture.pulls),
        copies=_grouped(picture.copies),
        leaving=_grouped(place for place in picture.stored if place.is_leaving),
        engines=_grouped(picture.engine_wants),
    )


def _grouped(rows: Iterable[OnNode]) -> dict[Any, list[OnNode]]:
    groups: dict[Any, list[OnNode]] = {}
    for row in rows:
        groups.setdefault(row.node_id, []).append(row)
    return groups


def orders(node_id: NodeId, picture: Picture, shared: Sharing, index: Index | None = None) -> Orders:
    """Return what `node_id` should hold: pure, and the same for the same picture, of which the others were made.

    One that waits for its approval gets nothing: no engine, no file, no secret.
    """
    index = index or indexed(picture)
    if node_id in index.unapproved:
        return Orders(replicas=(), files=())
    replicas = [
        _replica_order(one, index.deployments[one.deployment_id], picture, shared)
        for one in index.replicas.get(node_id, ())
    ]
    pulls = [_pull_order(pull, node_id, picture, shared) for pull in index.pulls.get(node_id, ())]
    copied = [order for copy in index.copies.get(node_id, ()) for order in _copied(copy, picture, shared)]
    return Orders(
        replicas=tuple(sorted(replicas, key=lambda one: one.replica_id)),
        files=tuple(sorted([*pulls, *copied], key=lambda one: one.want_id)),
        removed_files=_removed(index.leaving.get(node_id, ()), picture),
        engines=tuple(
            EngineOrder(
                engine=want.engine,
                version=want.version,
                source=want.source,
                is_removed=want.is_removed,
                adopt_url=want.adopt_url,
            )
            for want in index.engines.get(node_id, ())
        ),
    )


def _pull_order(pull: Pull, node_id: NodeId, picture: Picture, shared: Sharing) -> FileOrder:
    digest = pinned(pull.source)
    order = FileOrder(
        want_id=PullId(pull.pull_id),
        source=pull.source,
        sha256=digest or "",
        size_bytes=0,
        is_cancelled=pull.state == PullState.CANCELLED.value,
        formats=formats(pull.engine, picture),
    )
    return _by_way(order, node_id, shared) if digest and not order.is_cancelled else order


def _copied(copy: Copy, picture: Picture, shared: Sharing) -> Iterator[FileOrder]:
    """Yield what of a copy is not there yet, each content once."""
    seen = set(picture.node_files.get(NodeId(copy.node_id), frozenset()))
    for file in picture.files.get(copy.version_id, ()):
        if file.sha256 not in seen:
            seen.add(Sha256(file.sha256))
            order = _file_order(file, copy.source)
            order = replace(order, want_id=PullId(copies.want_id(copy.copy_id, file.position)))
            yield _by_way(order, NodeId(copy.node_id), shared)


def _file_order(file: File, source: str) -> FileOrder:
    return FileOrder(
        want_id=PullId(""),
        source=file.source or source,
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        path=file.path,
    )


def _by_way(order: FileOrder, node_id: NodeId, shared: Sharing) -> FileOrder:
    way = shared.way(node_id, order.sha256)
    return replace(order, peers=way.peers, source="" if way.is_awaited else order.source)


def formats(engine: str, picture: Picture) -> tuple[str, ...]:
    """Return the formats that a pull should bring, best first: what `engine` eats, or any that runs on some node."""
    if engine:
        return formats_of(engine)
    usable = {str(fact["engine"]) for node in picture.nodes for fact in node.engines if fact["is_usable"]}
    # One that also serves without any file is for drills: it would take what no real engine can.
    real = [adapter for adapter in engines.adapters() if adapter.name in usable and "" not in adapter.formats]
    return tuple(dict.fromkeys(one for adapter in real for one in sorted(adapter.formats)))


def _removed(leaving: Sequence[StoredPlace], picture: Picture) -> tuple[Sha256, ...]:
    """Return what a node is to take out of its store now; a version or a pull may have come to need it meanwhile."""
    return tuple(sorted(Sha256(place.sha256) for place in leaving if _may_go(place, picture)))


def _may_go(place: StoredPlace, picture: Picture) -> bool:
    """Return whether a content may leave a store now.

    1. An operator asked for it whoever has it: unless a replica or a copy here needs it, or no other node has it now.
    2. Else when nothing needs it.
    """
    if not place.is_asked:
        return is_free(place, picture.pulls)
    needed = {row.version_id for row in picture.replicas if row.node_id == place.node_id}
    needed |= {copy.version_id for copy in picture.copies if copy.node_id == place.node_id}
    if any(file.sha256 == place.sha256 for version_id in needed for file in picture.files.get(version_id, ())):
        return False
    lost = {row.node_id for row in picture.nodes if row.state == NodeState.LOST.value}
    return not place.versions or any(
        other.sha256 == place.sha256 and other.node_id not in (place.node_id, *lost) and not other.is_leaving
        for other in picture.stored
    )


def _replica_order(row: Replica, deployment: Deployment, picture: Picture, shared: Sharing) -> ReplicaOrder:
    files = picture.files.get(row.version_id, ())
    return ReplicaOrder(
        replica_id=ReplicaId(row.replica_id),
        deployment=deployment.name,
        served_name=deployment.name,
        engine=row.engine,
        engine_version=row.engine_version,
        settings=row.settings,
        files=tuple(
            _by_way(_file_order(file, picture.sources[row.version_id]), NodeId(row.node_id), shared) for file in files
        ),
        promises={DeviceId(device): int(count) for device, count in row.promises.items()},
        # A draining replica still runs; only the doors know the difference.
        desired=Desired(row.desired),
        runtime=row.runtime,
        image=row.image,
        secret_name=deployment.secret_name,
        secret_mark=picture.secret_marks.get(deployment.secret_name, ""),
    )


def numbered(generation: int, *, is_changed: bool, applied_generation: int) -> tuple[int, bool]:
    """Return the generation of a node's desired set, counted last as `generation`, and whether that is a new one.

    It grows exactly when the content changed. A node that applied more than we ever counted has met a later database
    than ours: count on above it.
    """
    if is_changed or generation == 0 or applied_generation > generation:
        return max(generation, applied_generation) + 1, True
    return generation, False


class Dispatch:
    """Numbers desired sets and sends them to connected nodes."""

    def __init__(self, *, database: postgres.Database, leadership: Leadership, fleet: Fleet) -> None:
        self._database = database
        self._leadership = leadership
        self._fleet = fleet
        self._digests: dict[str, tuple[Orders, str]] = {}

    async def send(self, picture: Picture, live: Mapping[NodeId, NodeNow]) -> None:
        """Send every connected node its desired set, if it has not been sent this one.

        Raises:
            LeadershipLostError: another controller reigns.
            Failure: `storage.unavailable`.
        """
        shared, index = sharing(picture), indexed(picture)
        sets: list[tuple[NodeNow, DesiredSet]] = []
        news: dict[str, tuple[int, str]] = {}
        for row in picture.nodes:
            node = live.get(NodeId(row.node_id))
            if node is None or not node.is_connected:
                continue
            wanted = orders(node.node_id, picture, shared, index)
            digest = self._digest(row.node_id, wanted)
            generation, is_new = numbered(
                row.generation, is_changed=digest != row.desired_digest, applied_generation=node.applied_generation
            )
            if is_new:
                news[row.node_id] = (generation, digest)
            if is_new or node.sent_generation != generation:
                sets.append((node, self._set(generation, wanted)))
        if news:
            async with self._database.transaction() as connection:
                await self._leadership.fence(connection)
                counted = await fleet_store.set_desired(connection, news)
            # The row of one that is not among them has moved on: the next pass sends.
            sets = [(node, desired) for node, desired in sets if node.node_id not in news or node.node_id in counted]
        for node, desired in sets:
            self._fleet.send_desired(node.node_id, node.session_epoch, desired)

    def _digest(self, node_id: str, wanted: Orders) -> str:
        """Return the digest of `wanted`: of what it was at the last pass it is known."""
        known = self._digests.get(node_id)
        if known is None or known[0] != wanted:
            known = self._digests[node_id] = (wanted, wanted.digest())
        return known[1]

    def _set(self, generation: int, wanted: Orders) -> DesiredSet:
        return DesiredSet(
            leader_epoch=self._leadership.epoch,
            generation=generation,
            replicas=wanted.replicas,
            files=wanted.files,
            removed_files=wanted.removed_files,
            engines=wanted.engines,
        )
