"""From deployments, aliases and keys to the route table: pure.

Called by the reconcile loop after each pass. A replica on a node that is silent but not past its lease gets new
requests only when no other can: the node may be well and the line to it broken. Nothing is unrouted because somebody
has not reported yet.
"""

import dataclasses
from collections.abc import Sequence

from controller.routes.model import KeyEntry, RoutableAlias, RoutableDeployment, RoutableReplica, Route, Table, Target
from core.apikeys import engine_key
from core.names import version_text
from core.states import NodeState


def table(
    deployments: Sequence[RoutableDeployment],
    aliases: Sequence[RoutableAlias],
    keys: Sequence[KeyEntry],
    *,
    engine_seed: bytes,
) -> Table:
    """Return the table: one route per deployment, and one per alias that no deployment's name hides."""
    routes = {item.name: _route(item.name, item, engine_seed) for item in deployments}
    for alias in aliases:
        if alias.name in routes:
            continue
        serving = meant(alias, deployments)
        routes[alias.name] = _route(alias.name, serving, engine_seed) if serving else _undeployed(alias)
    return Table(
        routes=tuple(routes[name] for name in sorted(routes)), keys=tuple(sorted(keys, key=lambda key: key.kid))
    )


def meant(alias: RoutableAlias, deployments: Sequence[RoutableDeployment]) -> RoutableDeployment | None:
    """Return the deployment that an alias stands for, or None.

    1. Of a model: an enabled deployment of it before a disabled one, the one of the same name before the oldest.
    2. Of one version: the same among the deployments of that version, and of it alone are the replicas. A deployment
       that has left the version counts last, while replicas of the version still serve.
    """
    version = alias.version
    serving = [item for item in deployments if item.model == alias.model]
    if version is not None:
        serving = [
            dataclasses.replace(item, replicas=tuple(one for one in item.replicas if one.version == version))
            for item in serving
        ]
        serving = [item for item in serving if item.version == version or item.replicas]
    serving.sort(
        key=lambda item: (
            bool(item.disabled),
            version not in (None, item.version),
            item.name != alias.model,
            item.created_at,
            item.name,
        )
    )
    return serving[0] if serving else None


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
            engine_key=deployment.secret if deployment.secret is not None else engine_key(engine_seed, one.replica_id),
            base_url=one.base_url,
            node_id=one.node_id,
            plane_host=one.plane_host,
            plane_port=one.plane_port,
        )
        for one in sorted(chosen(deployment.replicas), key=lambda one: one.replica_id)
    )
    return Route(
        public_name=public_name,
        deployment=deployment.name,
        served_name=deployment.served_name or deployment.name,
        engine=deployment.engine,
        endpoints=tuple(sorted(deployment.endpoints)),
        targets=targets,
        waiting="" if targets else deployment.waiting or "no replica is ready",
        created_unix_s=int(deployment.created_at.timestamp()),
        disabled=deployment.disabled,
        model=deployment.model,
        version=deployment.version,
        card=deployment.card,
    )


def _undeployed(alias: RoutableAlias) -> Route:
    return Route(
        public_name=alias.name,
        deployment="",
        served_name="",
        engine="",
        endpoints=(),
        targets=(),
        waiting=f"model {version_text(alias.model, alias.version)} is not deployed",
        created_unix_s=0,
    )
