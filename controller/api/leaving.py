"""REST routes of cordons, drains, moves and forgotten nodes; docs/admin-api.md is their contract."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from controller.api import views
from controller.api.bodies import DrainBody, MoveBody
from controller.api.stage import Parts, Stage
from core.errors import Failure
from core.names import did_you_mean


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/nodes")
    async def nodes() -> dict[str, Any]:
        parts = stage.parts()
        seen, expiries = await parts.seen(), await parts.leaving.expiries()
        known = [row for row in seen.picture.nodes if row.node_id in seen.live]
        return {"items": [views.node(row, seen, expiries.get(row.node_id)) for row in known]}

    @routes.get("/nodes/{name}")
    async def node(name: str) -> dict[str, Any]:
        return await _node(stage.parts(), name)

    @routes.post("/nodes/{name}/cordon")
    async def cordon(name: str) -> dict[str, Any]:
        await stage.parts().leaving.cordon(name)
        return await _node(stage.parts(), name)

    @routes.post("/nodes/{name}/uncordon")
    async def uncordon(name: str) -> dict[str, Any]:
        await stage.parts().leaving.uncordon(name)
        return await _node(stage.parts(), name)

    @routes.post("/nodes/{name}/drain")
    async def drain(name: str, body: DrainBody | None = None) -> JSONResponse:
        await stage.parts().leaving.drain(name, is_forced=body is not None and body.force)
        return JSONResponse(await _node(stage.parts(), name), status_code=202)

    @routes.delete("/nodes/{name}", status_code=204)
    async def forget(name: str, *, force: bool = False) -> Response:
        await stage.parts().leaving.forget(name, is_forced=force)
        return Response(status_code=204)

    @routes.post("/replicas/{replica_id}/move")
    async def move(replica_id: str, body: MoveBody) -> JSONResponse:
        await stage.parts().leaving.move(replica_id, body.node)
        return JSONResponse(await _replica(stage.parts(), replica_id), status_code=202)

    @routes.delete("/replicas/{replica_id}/move")
    async def stay(replica_id: str) -> dict[str, Any]:
        await stage.parts().leaving.stay(replica_id)
        return await _replica(stage.parts(), replica_id)

    return routes


async def _node(parts: Parts, name: str) -> dict[str, Any]:
    seen, expiries = await parts.seen(), await parts.leaving.expiries()
    for row in seen.picture.nodes:
        if name in (row.name, row.node_id) and row.node_id in seen.live:
            return views.node(row, seen, expiries.get(row.node_id))
    known = [row.name for row in seen.picture.nodes]
    raise Failure(
        "node.not_found",
        f"there is no node {name!r}.{did_you_mean(name, known)}",
        hint="`slice node list` shows all",
    )


async def _replica(parts: Parts, replica_id: str) -> dict[str, Any]:
    seen = await parts.seen()
    for row in seen.picture.replicas:
        if row.replica_id == replica_id:
            return views.replica(row, seen)
    raise Failure("replica.not_found", f"replica {replica_id!r} has just gone", hint="`slice ps` shows all")
