"""REST routes of the catalogue, pulls, models and aliases; docs/admin-api.md is their contract."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from controller.api import views
from controller.api.bodies import AliasBody, CopyBody, PullBody
from controller.api.stage import Parts, Stage
from controller.registry.catalog import CATALOG
from controller.registry.service import in_use
from core.errors import Failure
from core.sources import parse_source
from core.states import PullState


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/catalog")
    async def catalog() -> dict[str, Any]:
        return {"items": [views.catalog_entry(entry) for entry in CATALOG.values()]}

    @routes.post("/pulls", status_code=202)
    async def begin_pull(body: PullBody) -> JSONResponse:
        parts = stage.parts()
        pull = await parts.pulls.begin(_pulled_name(body), body.source, body.engine)
        status = 200 if pull.state == PullState.DONE.value else 202
        return JSONResponse(views.pull(pull, await parts.seen()), status_code=status)

    @routes.get("/pulls")
    async def pulls() -> dict[str, Any]:
        parts = stage.parts()
        async with parts.database.snapshot() as connection:
            rows = await parts.pulls.pulls(connection)
            seen = await parts.seen(connection)
        return {"items": [views.pull(row, seen) for row in rows]}

    @routes.get("/pulls/{pull_id}")
    async def pull(pull_id: str) -> dict[str, Any]:
        parts = stage.parts()
        async with parts.database.snapshot() as connection:
            row = await parts.pulls.pull(connection, pull_id)
            seen = await parts.seen(connection)
        return views.pull(row, seen)

    @routes.delete("/pulls/{pull_id}")
    async def cancel_pull(pull_id: str) -> dict[str, Any]:
        parts = stage.parts()
        row = await parts.pulls.cancel(pull_id)
        return views.pull(row, await parts.seen())

    _models(routes, stage)
    _aliases(routes, stage)
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
    return views.model(row, every, tuple(deployments))


def _models(routes: APIRouter, stage: Stage) -> None:
    @routes.get("/models")
    async def models() -> dict[str, Any]:
        parts = stage.parts()
        async with parts.database.snapshot() as connection:
            every = await parts.registry.everything(connection)
            deployments = tuple(await parts.deployments.deployments(connection))
        return {"items": [views.model(row, every, deployments) for row in every.models]}

    @routes.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        return await _shown(stage.parts(), name)

    @routes.get("/models/{name}/versions/{number}/template")
    async def template(name: str, number: int) -> dict[str, Any]:
        parts = stage.parts()
        async with parts.database.snapshot() as connection:
            row = await parts.registry.model_in(connection, name)
            every = await parts.registry.everything(connection)
            version = views.numbered(row, number, every)
            found = await parts.registry.template(connection, version)
        return views.template(row, version, found)

    @routes.post("/models/{name}/copy", status_code=201)
    async def copy(name: str, body: CopyBody) -> dict[str, Any]:
        parts = stage.parts()
        await parts.registry.copy(name, body.to)
        return await _shown(parts, body.to)

    @routes.delete("/models/{name}", status_code=204)
    async def delete(name: str, *, force: bool = False) -> Response:
        parts = stage.parts()
        async with parts.database.connection() as connection:
            deployed = [one for one in await parts.deployments.deployments(connection) if one.model == name]
        living = tuple(one.name for one in deployed if not one.is_deleting)
        if living and not force:
            raise in_use(name, living)
        for one in living:
            await parts.deployments.delete(one)
        # A deployment that is on its way out does not keep its model in sight.
        await parts.registry.delete(name, force=force or bool(deployed))
        return Response(status_code=204)


def _aliases(routes: APIRouter, stage: Stage) -> None:
    @routes.get("/aliases")
    async def aliases() -> dict[str, Any]:
        rows = await stage.parts().registry.aliases()
        return {"items": [{"name": row.name, "model": row.model} for row in rows]}

    @routes.put("/aliases/{name}")
    async def put_alias(name: str, body: AliasBody) -> dict[str, Any]:
        row = await stage.parts().registry.put_alias(name, body.model)
        return {"name": row.name, "model": row.model}

    @routes.delete("/aliases/{name}", status_code=204)
    async def delete_alias(name: str) -> Response:
        await stage.parts().registry.delete_alias(name)
        return Response(status_code=204)
