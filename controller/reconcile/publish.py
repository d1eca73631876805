"""From the picture and the live nodes to the published route table.

Called by `controller.reconcile.loop` in each pass; everything but the call of `Routes.publish` is pure.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from adapters import registry as engines
from adapters.contract import Adapter, External, Runtime
from controller.deployments.model import Deployment, RefusalRow, Replica
from controller.deployments.waiting import Sight, standing
from controller.fleet.model import NodeNow
from controller.identity.model import ApiKey
from controller.reconcile.cards import card
from controller.reconcile.lifecycle import is_past_lease
from controller.reconcile.picture import Picture
from controller.routes.model import KeyEntry, RoutableAlias, RoutableDeployment, RoutableReplica, Table
from controller.routes.table import table
from core import origins
from core.errors import Failure
from core.ids import NodeId, ReplicaId
from core.states import SERVING, Desired, NodeState, ReplicaState


def route_table(
    picture: Picture,
    live: Mapping[NodeId, NodeNow],
    *,
    lost_s: float,
    engine_seed: bytes,
    secrets: Mapping[str, str] = MappingProxyType({}),
    doors_node: str = "",
) -> Table:
    """Return the table that doors should serve by; a deployment that is being deleted has no route.

    `secrets` are those that could be opened; without its own an external deployment has no target. `doors_node` is the
    node of the machine that the doors run on: its engines are reached on loopback, though it may have a data plane.
    """
    if NodeId(doors_node) in live:
        own = live[NodeId(doors_node)]._replace(plane_host="", plane_port=0)
        live = {**live, own.node_id: own}
    by_deployment: dict[str, list[Replica]] = {}
    for row in picture.replicas:
        by_deployment.setdefault(row.deployment_id, []).append(row)
    refusals = {row.deployment_id: row for row in picture.refusals}
    deployments = [
        replace(
            _with_secret(
                _deployment(
                    row, by_deployment.get(row.deployment_id, []), refusals.get(row.deployment_id), live, lost_s=lost_s
                ),
                row,
                secrets,
            ),
            card=card(row, picture.versions.get(row.version_id), by_deployment.get(row.deployment_id, []), live),
        )
        for row in picture.deployments
        if not row.is_deleting
    ]
    aliases = [RoutableAlias(name=alias.name, model=alias.model, version=alias.version) for alias in picture.aliases]
    return table(deployments, aliases, [_key(key) for key in picture.keys], engine_seed=engine_seed)


def unrouted(picture: Picture) -> frozenset[ReplicaId]:
    """Return the replicas that are on their way out."""
    return frozenset(ReplicaId(row.replica_id) for row in picture.replicas if row.desired != Desired.RUN.value)


def _deployment(
    row: Deployment,
    replicas: list[Replica],
    refusal: RefusalRow | None,
    live: Mapping[NodeId, NodeNow],
    *,
    lost_s: float,
) -> RoutableDeployment:
    sights = [_sight(replica, live.get(NodeId(replica.node_id))) for replica in replicas]
    adapter = engines.adapter(row.engine)
    return RoutableDeployment(
        name=row.name,
        model=row.model,
        engine=row.engine,
        endpoints=tuple(endpoint.value for endpoint in adapter.endpoints(row.settings)),
        replicas=tuple(
            _replica(replica, live.get(NodeId(replica.node_id)), lost_s)
            for replica in replicas
            if row.is_enabled and ReplicaState(replica.state) in SERVING and replica.desired == Desired.RUN.value
        ),
        waiting=standing(row, sights, refusal).waiting,
        created_at=row.created_at,
        version=row.version,
        disabled="" if row.is_enabled else row.disabled_answer,
        served_name=_remote_name(adapter, row),
    )


def _remote_name(adapter: Adapter, row: Deployment) -> str:
    if row.runtime != Runtime.EXTERNAL or not isinstance(adapter, External):
        return ""
    try:
        return adapter.remote(row.settings).model
    except Failure:  # settings of an earlier release: its replicas fail and say why
        return ""


def _with_secret(routable: RoutableDeployment, row: Deployment, secrets: Mapping[str, str]) -> RoutableDeployment:
    """Return `routable` with the key of its engines, or without replicas when that key cannot be had."""
    if row.runtime != Runtime.EXTERNAL:
        return routable
    if row.secret_name and row.secret_name not in secrets:
        sentence = f"its secret {row.secret_name} cannot be opened; store it again with `slice secret set`"
        return replace(routable, replicas=(), waiting=sentence)
    return replace(routable, secret=secrets.get(row.secret_name, ""))


def _sight(replica: Replica, node: NodeNow | None) -> Sight:
    return Sight(
        replica=replica,
        node_name=node.name if node else replica.node_id,
        node_state=node.state if node else NodeState.LOST,
        is_heard=node.is_heard if node else False,
    )


def _replica(row: Replica, node: NodeNow | None, lost_s: float) -> RoutableReplica:
    has_plane = node is not None and bool(node.plane_host) and (not row.base_url or _is_on_the_node(row.base_url))
    return RoutableReplica(
        replica_id=ReplicaId(row.replica_id),
        incarnation=row.incarnation,
        host=row.host,
        port=row.port,
        base_url=row.base_url,
        node_state=node.state if node else NodeState.LOST,
        is_silent_past_lease=is_past_lease(node, lost_s),
        version=row.version,
        node_id=row.node_id,
        plane_host=node.plane_host if node and has_plane else "",
        plane_port=node.plane_port if node and has_plane else 0,
    )


def _is_on_the_node(base_url: str) -> bool:
    """Return whether a remote engine's address means the node's own machine: no door on another one can dial that."""
    try:
        origin = origins.parse_base_url(base_url)
    except Failure:
        return False
    return origins.is_carried(origin)


def _key(key: ApiKey) -> KeyEntry:
    return KeyEntry(
        kid=key.kid,
        digest=key.digest,
        project=key.project,
        expires_unix_s=int(key.expires_at.timestamp()) if key.expires_at else 0,
        is_revoked=key.revoked_at is not None,
    )
