"""REST routes of secrets: values come in, names go out; docs/admin-api.md is their contract."""

from typing import Any

from fastapi import APIRouter, Response

from controller.api import views
from controller.api.bodies import SecretBody
from controller.api.stage import Stage


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/secrets")
    async def secrets() -> dict[str, Any]:
        return {"items": [views.secret(row) for row in await stage.parts().secrets.all()]}

    @routes.put("/secrets/{name}")
    async def put(name: str, body: SecretBody) -> dict[str, Any]:
        return views.secret(await stage.parts().secrets.set(name, body.value))

    @routes.delete("/secrets/{name}", status_code=204)
    async def delete(name: str) -> Response:
        await stage.parts().secrets.delete(name)
        return Response(status_code=204)

    return routes
