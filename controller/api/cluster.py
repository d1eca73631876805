"""REST routes of the cluster itself: health, metrics, status, keys, events, routes; docs/admin-api.md."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse

from controller.api import member_views, views
from controller.api.bodies import KeyBody
from controller.api.stage import Parts, Stage
from controller.deployments.waiting import standing
from controller.fleet.brake import sentence
from core.errors import Failure
from core.infra.metrics import CONTENT_TYPE, MetricsPage
from core.states import NodeState, ReplicaState

_SEQ_MAX = 2**63 - 1


def router(stage: Stage, metrics: MetricsPage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> JSONResponse:
        if stage.is_ready:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "starting"}, status_code=503, headers={"Retry-After": "1"})

    @routes.get("/metrics")
    async def metrics_page() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    @routes.get("/api/v1/status")
    async def status() -> dict[str, Any]:
        return await _status(stage.parts())

    @routes.post("/api/v1/brake/release")
    async def release_brake() -> dict[str, Any]:
        fleet = stage.parts().fleet
        was_on = fleet.brake.is_on
        fleet.release_brake()
        return {"was_on": was_on, "lost": len(fleet.brake.lost)}

    @routes.get("/api/v1/routes")
    async def route_table() -> dict[str, Any]:
        service = stage.parts().routes
        table = service.published
        return {
            "version": service.version,
            "items": [views.route(route) for route in table.table.routes] if table else [],
            "doors": [views.door(door) for door in service.doors()],
        }

    _keys(routes, stage)
    _events(routes, stage)
    return routes


async def _status(parts: Parts) -> dict[str, Any]:
    seen = await parts.seen()
    picture = seen.picture
    refusals = {row.deployment_id: row for row in picture.refusals}
    standings = [
        standing(row, seen.sights(row.deployment_id), refusals.get(row.deployment_id)) for row in picture.deployments
    ]
    ready_nodes = sum(1 for node in seen.live.values() if node.state is NodeState.READY)
    ready_replicas = sum(1 for row in picture.replicas if row.state == ReplicaState.READY.value)
    return {
        "version": parts.version,
        "cluster_id": parts.cluster_id,
        "leader_epoch": parts.leader_epoch,
        "schema": parts.schema,
        "nodes": views.count(ready_nodes, len(seen.live)),
        "deployments": views.count(sum(1 for one in standings if one.state == "ready"), len(standings)),
        "replicas": views.count(ready_replicas, len(picture.replicas)),
        "doors": len(parts.routes.doors()),
        "route_version": parts.routes.version,
        "openai_base_url": parts.openai_base_url,
        "node_listener": member_views.listener(parts.tokens.place),
        "brake": sentence(parts.fleet.brake, len(seen.live)),
    }


def _keys(routes: APIRouter, stage: Stage) -> None:
    @routes.get("/api/v1/keys")
    async def keys() -> dict[str, Any]:
        return {"items": [views.key(row) for row in await stage.parts().identity.keys()]}

    @routes.post("/api/v1/keys", status_code=201)
    async def mint(body: KeyBody) -> dict[str, Any]:
        minted = await stage.parts().identity.mint(body.name, body.expires_in_s)
        return {**views.key(minted.key), "key": minted.text}

    @routes.delete("/api/v1/keys/{word}")
    async def revoke(word: str) -> dict[str, Any]:
        return views.key(await stage.parts().identity.revoke(word))


def _events(routes: APIRouter, stage: Stage) -> None:
    @routes.get("/api/v1/events", response_model=None)
    async def events(
        after: Annotated[int, Query(ge=0, le=_SEQ_MAX)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        *,
        follow: bool = False,
    ) -> dict[str, Any] | StreamingResponse:
        parts = stage.parts()
        if follow:
            await parts.ledger.page(after, 1)  # a database that is away is an answer, not an empty stream
            return StreamingResponse(_lines(parts, after), media_type="application/x-ndjson")
        return {"items": [views.event(row) for row in await parts.ledger.page(after, limit)]}


async def _lines(parts: Parts, after: int) -> AsyncIterator[bytes]:
    try:
        async for row in parts.ledger.follow(after):
            yield json.dumps(views.event(row)).encode() + b"\n"
    except Failure:
        return  # the database went away: the reader sees the end and asks again from its last seq
