"""REST routes of deployments, replicas and their logs; docs/admin-api.md is their contract."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, StreamingResponse

from controller.api import views
from controller.api.bodies import DeploymentBody, DeploymentCopyBody, DeploymentPatch, ExpectBody
from controller.api.expecting import IfMatch, expected
from controller.api.stage import Parts, Stage
from controller.deployments.model import DeploymentChange, NewDeployment, Replica
from core.errors import Failure
from core.ids import NodeId, ReplicaId
from core.names import did_you_mean


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/deployments")
    async def deployments() -> dict[str, Any]:
        seen = await stage.parts().seen()
        return {"items": [views.deployment(row, seen) for row in seen.picture.deployments]}

    @routes.get("/deployments/{name}")
    async def deployment(name: str) -> dict[str, Any]:
        return await _shown(stage.parts(), name)

    @routes.post("/deployments", status_code=201)
    async def create(body: DeploymentBody) -> dict[str, Any]:
        parts = stage.parts()
        wish = NewDeployment(
            name=body.name,
            model=body.model,
            engine=body.engine,
            engine_version=body.engine_version,
            replicas=body.replicas,
            settings=body.settings,
            requires=body.requires,
            is_enabled=body.is_enabled,
            disabled_answer=body.disabled_answer,
            runtime=body.runtime,
            image=body.image,
            node_name=body.node,
            secret_name=body.secret,
        )
        return await _shown(parts, await parts.deployments.create(wish))

    @routes.post("/deployments/{name}/copy", status_code=201)
    async def copy(name: str, body: DeploymentCopyBody, if_match: IfMatch = None) -> dict[str, Any]:
        parts = stage.parts()
        made = await parts.deployments.copy(
            name,
            body.to,
            settings=body.settings,
            replicas=body.replicas,
            expected=expected(if_match, body.resource_version),
        )
        return await _shown(parts, made)

    @routes.patch("/deployments/{name}")
    async def change(name: str, body: DeploymentPatch, if_match: IfMatch = None) -> dict[str, Any]:
        parts = stage.parts()
        wish = DeploymentChange(**{**body.model_dump(), "resource_version": expected(if_match, body.resource_version)})
        await parts.deployments.change(name, wish)
        return await _shown(parts, name)

    @routes.delete("/deployments/{name}", status_code=202)
    async def delete(name: str, body: ExpectBody | None = None, if_match: IfMatch = None) -> JSONResponse:
        parts = stage.parts()
        before = await _shown(parts, name)
        await parts.deployments.delete(name, expected=expected(if_match, body.resource_version if body else None))
        try:
            return JSONResponse(await _shown(parts, name), status_code=202)
        except Failure as failure:
            if failure.code != "deployment.not_found":
                raise
            # Without replicas it may be gone before it is read again.
            gone = {**before, "is_deleting": True, "state": "stopped", "waiting": "it is gone"}
            return JSONResponse(gone, status_code=202)

    _replicas(routes, stage)
    return routes


async def _shown(parts: Parts, name: str) -> dict[str, Any]:
    async with parts.database.snapshot() as connection:
        row = await parts.deployments.deployment(connection, name)
        seen = await parts.seen(connection)
    return views.deployment(row, seen)


def _replicas(routes: APIRouter, stage: Stage) -> None:
    @routes.get("/replicas")
    async def replicas() -> dict[str, Any]:
        seen = await stage.parts().seen()
        return {"items": [views.replica(row, seen) for row in seen.picture.replicas]}

    @routes.get("/replicas/{replica_id}")
    async def replica(replica_id: str) -> dict[str, Any]:
        seen = await stage.parts().seen()
        return views.replica(_found(seen.picture.replicas, replica_id), seen)

    @routes.get("/replicas/{replica_id}/logs", response_class=StreamingResponse)
    async def logs(
        replica_id: str, tail: Annotated[int, Query(ge=0, le=100_000)] = 200, *, follow: bool = False
    ) -> StreamingResponse:
        parts = stage.parts()
        seen = await parts.seen()
        row = _found(seen.picture.replicas, replica_id)
        chunks = parts.logs.read(NodeId(row.node_id), ReplicaId(row.replica_id), tail_lines=tail, follow=follow)
        # The first chunk is waited for here, so that a node that does not answer is an error and not an empty log.
        first = await anext(chunks, b"")
        return StreamingResponse(_rest(first, chunks), media_type="text/plain; charset=utf-8")


async def _rest(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(chunks):  # type: ignore[type-var]  # an async generator in fact
        yield first
        try:
            async for chunk in chunks:
                yield chunk
        except Failure as failure:
            yield f"\n[slice: {failure.message}]\n".encode()


def _found(rows: tuple[Replica, ...], replica_id: str) -> Replica:
    for row in rows:
        if row.replica_id == replica_id:
            return row
    known = [row.replica_id for row in rows]
    raise Failure(
        "replica.not_found",
        f"there is no replica {replica_id!r}.{did_you_mean(replica_id, known)}",
        hint="`slice ps` shows all",
    )
