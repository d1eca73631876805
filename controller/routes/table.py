"""From deployments, aliases and keys to the route table: pure.

Called by the reconcile loop after each pass. A replica on a node that is silent but not past its lease gets new
requests only when no other can: the node may be well and the line to it broken. Nothing is unrouted because somebody
has not reported yet.
"""

from collections.abc import Mapping, Sequence

from controller.routes.model import KeyEntry, RoutableDeployment, RoutableReplica, Route, Table, Target
from core.apikeys import engine_key
from core.states import NodeState


def table(
    deployments: Sequence[RoutableDeployment],
    aliases: Mapping[str, str],
    keys: Sequence[KeyEntry],
    *,
    engine_seed: bytes,
) -> Table:
    """Return the table: one route per deployment, and one per alias that no deployment's name hides.

    An alias stands for the model's deployment of the same name, else for its oldest one.
    """
    routes = {item.name: _route(item.name, item, engine_seed) for item in deployments}
    for alias, model in aliases.items():
        if alias in routes:
            continue
        serving = [item for item in deployments if item.model == model]
        serving.sort(key=lambda item: (item.name != model, item.created_at, item.name))
        routes[alias] = _route(alias, serving[0], engine_seed) if serving else _undeployed(alias, model)
    return Table(
        routes=tuple(routes[name] for name in sorted(routes)), keys=tuple(sorted(keys, key=lambda key: key.kid))
    )


def chosen(replicas: Sequence[RoutableReplica]) -> tuple[RoutableReplica, ...]:
    """Return the replicas that new requests go to.

    1. Those on nodes that are heard of.
    2. Without any: those on nodes that are silent, or offline, but not past the lease.
    """
    heard = tuple(one for one in replicas if one.node_state is NodeState.READY)
    return heard or tuple(one for one in replicas if not one.is_silent_past_lease)


def _route(public_name: str, deployment: RoutableDeployment, engine_seed: bytes) -> Route:
    targets = tuple(
        Target(
            replica_id=one.replica_id,
            incarnation=one.incarnation,
            host=one.host,
            port=one.port,
            engine_key=engine_key(engine_seed, one.replica_id),
        )
        for one in sorted(chosen(deployment.replicas), key=lambda one: one.replica_id)
    )
    return Route(
        public_name=public_name,
        deployment=deployment.name,
        served_name=deployment.name,
        engine=deployment.engine,
        endpoints=tuple(sorted(deployment.endpoints)),
        targets=targets,
        waiting="" if targets else deployment.waiting or "no replica is ready",
        created_unix_s=int(deployment.created_at.timestamp()),
    )


def _undeployed(alias: str, model: str) -> Route:
    return Route(
        public_name=alias,
        deployment="",
        served_name="",
        engine="",
        endpoints=(),
        targets=(),
        waiting=f"model {model} is not deployed",
        created_unix_s=0,
    )
