"""REST routes of the nodes' stores: what lies there, and what may go; docs/admin-api.md is their contract."""

from typing import Any

from fastapi import APIRouter

from controller.api import model_views
from controller.api.bodies import CollectBody
from controller.api.stage import Stage


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/store")
    async def store() -> dict[str, Any]:
        parts = stage.parts()
        seen = await parts.seen()
        return {
            "items": [model_views.stored(place) for place in seen.picture.stored],
            "nodes": [model_views.store_of(row, seen) for row in seen.picture.nodes],
        }

    @routes.post("/store/gc")
    async def collect(body: CollectBody) -> dict[str, Any]:
        parts = stage.parts()
        seen = await parts.seen()
        found = await parts.stores.collect(
            body.node,
            node_names=[row.name for row in seen.picture.nodes],
            older_than_s=body.older_than_s,
            is_dry_run=body.dry_run,
        )
        return model_views.collected(found, is_dry_run=body.dry_run)

    return routes
