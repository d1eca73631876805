"""REST routes of versions, their stages, and aliases; docs/admin-api.md is their contract."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from controller.api import model_views
from controller.api.bodies import AliasBody, ExpectBody, StageBody
from controller.api.expecting import IfMatch, expected
from controller.api.stage import Parts, Stage
from core import states

Number = Annotated[int, Path(ge=1, le=999_999_999)]


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/models/{name}/versions/{number}")
    async def version(name: str, number: Number) -> dict[str, Any]:
        return await _shown(stage.parts(), name, number)

    @routes.delete("/models/{name}/versions/{number}", status_code=204)
    async def delete(
        name: str, number: Number, body: ExpectBody | None = None, if_match: IfMatch = None, *, force: bool = False
    ) -> Response:
        parts = stage.parts()
        await parts.registry.delete(
            name,
            number,
            undeploy=parts.deployments.undeploy if force else None,
            expected=expected(if_match, body.resource_version if body else None),
        )
        return Response(status_code=204)

    @routes.put("/models/{name}/versions/{number}/stage")
    async def move(name: str, number: Number, body: StageBody, if_match: IfMatch = None) -> dict[str, Any]:
        parts = stage.parts()
        await parts.stages.move(
            name,
            number,
            states.Stage(body.stage),
            reason=body.reason,
            approve_template=body.approve_template,
            expected=expected(if_match, body.resource_version),
        )
        return await _shown(parts, name, number)

    @routes.get("/models/{name}/versions/{number}/stages")
    async def history(name: str, number: Number) -> dict[str, Any]:
        parts = stage.parts()
        async with parts.database.snapshot() as connection:
            rows = await parts.stages.history(connection, name, number)
        return {"items": [model_views.stage_event(row) for row in rows]}

    _aliases(routes, stage)
    return routes


async def _shown(parts: Parts, name: str, number: int) -> dict[str, Any]:
    async with parts.database.snapshot() as connection:
        model = await parts.registry.named(connection, name)
        row = await parts.registry.numbered(connection, model, number)
        every = await parts.registry.everything(connection)
    return {"model": name, **model_views.version(row, every)}


def _aliases(routes: APIRouter, stage: Stage) -> None:
    @routes.get("/aliases")
    async def aliases() -> dict[str, Any]:
        return {"items": [model_views.alias(row) for row in await stage.parts().aliases.aliases()]}

    @routes.put("/aliases/{name}")
    async def put_alias(name: str, body: AliasBody, if_match: IfMatch = None) -> dict[str, Any]:
        found = expected(if_match, body.resource_version)
        made = await stage.parts().aliases.put(name, body.model, approve_template=body.approve_template, expected=found)
        return model_views.alias(made)

    @routes.delete("/aliases/{name}", status_code=204)
    async def delete_alias(name: str, body: ExpectBody | None = None, if_match: IfMatch = None) -> Response:
        found = expected(if_match, body.resource_version if body else None)
        await stage.parts().aliases.delete(name, expected=found)
        return Response(status_code=204)
