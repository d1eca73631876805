"""REST routes of the catalogue, pulls and models; docs/admin-api.md is their contract."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from controller.api import model_views, places
from controller.api.bodies import CopyBody, ExpectBody, PullBody
from controller.api.expecting import IfMatch, expected
from controller.api.stage import Parts, Stage
from controller.registry.catalog import CATALOG
from core.errors import Failure
from core.names import version_text
from core.sources import parse_source
from core.states import PullState


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/catalog")
    async def catalog() -> dict[str, Any]:
        return {"items": [model_views.catalog_entry(entry) for entry in CATALOG.values()]}

    @routes.post("/pulls", status_code=202)
    async def begin_pull(body: PullBody) -> JSONResponse:
        parts = stage.parts()
        pull = await parts.pulls.begin(_pulled_name(body), body.source, body.engine)
        status = 200 if pull.state == PullState.DONE.value else 202
        return JSONResponse(model_views.pull(pull, await parts.seen()), status_code=status)

    @routes.get("/pulls")
    async def pulls() -> dict[str, Any]:
        parts = stage.parts()
        async with parts.database.snapshot() as connection:
            rows = await parts.pulls.pulls(connection)
            copies = await parts.copies.copies(connection)
            seen = await parts.seen(connection)
        items = [*(model_views.pull(row, seen) for row in rows), *(places.copy(row, seen) for row in copies)]
        return {"items": sorted(items, key=lambda item: str(item["created_at"]), reverse=True)}

    @routes.get("/pulls/{pull_id}")
    async def pull(pull_id: str) -> dict[str, Any]:
        parts = stage.parts()
        if places.is_copy(pull_id):
            return await places.shown(parts, pull_id)
        async with parts.database.snapshot() as connection:
            row = await parts.pulls.pull(connection, pull_id)
            seen = await parts.seen(connection)
        return model_views.pull(row, seen)

    @routes.delete("/pulls/{pull_id}")
    async def cancel_pull(pull_id: str) -> dict[str, Any]:
        parts = stage.parts()
        if places.is_copy(pull_id):
            await parts.copies.cancel(pull_id)
            return await places.shown(parts, pull_id)
        row = await parts.pulls.cancel(pull_id)
        return model_views.pull(row, await parts.seen())

    _models(routes, stage)
    return routes


def _pulled_name(body: PullBody) -> str:
    if body.name is not None:
        return body.name
    if body.source is None:
        raise Failure(
            "request.invalid_field", "a pull needs a name or a source", hint="`slice catalog` lists names", param="name"
        )
    return parse_source(body.source).model_name


async def _shown(parts: Parts, name: str) -> dict[str, Any]:
    async with parts.database.snapshot() as connection:
        row = await parts.registry.model_in(connection, name)
        every = await parts.registry.everything(connection)
        deployments = await parts.deployments.deployments(connection)
    return model_views.model(row, every, tuple(deployments))


def _models(routes: APIRouter, stage: Stage) -> None:
    @routes.get("/models")
    async def models() -> dict[str, Any]:
        parts = stage.parts()
        async with parts.database.snapshot() as connection:
            every = await parts.registry.everything(connection)
            deployments = tuple(await parts.deployments.deployments(connection))
        return {"items": [model_views.model(row, every, deployments) for row in every.models]}

    @routes.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        return await _shown(stage.parts(), name)

    @routes.get("/models/{name}/versions/{number}/template")
    async def template(name: str, number: int) -> dict[str, Any]:
        parts = stage.parts()
        async with parts.database.snapshot() as connection:
            row = await parts.registry.model_in(connection, name)
            version = await parts.registry.numbered(connection, row, number)
            found = await parts.registry.template(connection, version)
        return model_views.template(row, version, found)

    @routes.post("/models/{name}/copy", status_code=201)
    async def copy(name: str, body: CopyBody, if_match: IfMatch = None) -> dict[str, Any]:
        parts = stage.parts()
        source = version_text(name, body.version)
        await parts.registry.copy(source, body.to, expected=expected(if_match, body.resource_version))
        return await _shown(parts, body.to)

    @routes.delete("/models/{name}", status_code=204)
    async def delete(
        name: str, body: ExpectBody | None = None, if_match: IfMatch = None, *, force: bool = False
    ) -> Response:
        parts = stage.parts()
        await parts.registry.delete(
            name,
            undeploy=parts.deployments.undeploy if force else None,
            expected=expected(if_match, body.resource_version if body else None),
        )
        return Response(status_code=204)
