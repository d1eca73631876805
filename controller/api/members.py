"""REST routes of membership: join tokens and approvals; docs/admin-api.md is their contract."""

from typing import Any

from fastapi import APIRouter

from controller.api import member_views, views
from controller.api.bodies import JoinTokenBody
from controller.api.stage import Parts, Stage
from controller.identity.model import JoinToken


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1/nodes")

    @routes.get("/tokens")
    async def tokens() -> dict[str, Any]:
        parts = stage.parts()
        return {"items": [_shown(parts, row) for row in await parts.tokens.all()]}

    @routes.post("/tokens", status_code=201)
    async def mint(body: JoinTokenBody) -> dict[str, Any]:
        parts = stage.parts()
        minted = await parts.tokens.mint(
            ttl_s=body.ttl_s, labels=body.labels, node_name=body.name or "", is_approving=body.is_approving
        )
        return {**_shown(parts, minted.token), "line": minted.line}

    @routes.delete("/tokens/{token_id}")
    async def revoke(token_id: str) -> dict[str, Any]:
        parts = stage.parts()
        return _shown(parts, await parts.tokens.revoke(token_id))

    @routes.post("/{name}/approve")
    async def approve(name: str) -> dict[str, Any]:
        parts = stage.parts()
        row = await parts.members.approve(name)
        return views.node(row, await parts.seen())

    return routes


def _shown(parts: Parts, row: JoinToken) -> dict[str, Any]:
    return member_views.join_token(row, parts.tokens.state(row))
