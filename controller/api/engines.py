"""REST routes of engines and their installations; docs/admin-api.md is their contract."""

from typing import Any

from fastapi import APIRouter

from adapters import registry
from controller.api import engine_views
from controller.api.bodies import (
    EngineAdoptBody,
    EngineInstallBody,
    EngineRemoveBody,
    EngineRollbackBody,
    EngineUpgradeBody,
)
from controller.api.stage import Parts, Stage
from controller.engines.model import InstallWish, Moving


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/engines")
    async def engines() -> dict[str, Any]:
        seen = await stage.parts().seen()
        return {"items": [engine_views.engine(adapter, seen) for adapter in registry.adapters()]}

    @routes.get("/engines/{name}")
    async def engine(name: str) -> dict[str, Any]:
        return await _shown(stage.parts(), name)

    @routes.post("/engines/{name}/install", status_code=202)
    async def install(name: str, body: EngineInstallBody) -> dict[str, Any]:
        parts = stage.parts()
        version = await parts.engines.install(name, _wish(body))
        return {**await _shown(parts, name), "version": version}

    @routes.post("/engines/{name}/remove", status_code=202)
    async def remove(name: str, body: EngineRemoveBody) -> dict[str, Any]:
        parts = stage.parts()
        await parts.engines.remove(name, body.version, body.node, force=body.force)
        return {**await _shown(parts, name), "version": body.version}

    @routes.post("/engines/{name}/upgrade", status_code=202)
    async def upgrade(name: str, body: EngineUpgradeBody) -> dict[str, Any]:
        parts = stage.parts()
        version, moved = await parts.engines.upgrade(name, _wish(body), _moving(body.deployments))
        return {**await _shown(parts, name), "version": version, "moved": list(moved)}

    @routes.post("/engines/{name}/rollback", status_code=202)
    async def rollback(name: str, body: EngineRollbackBody) -> dict[str, Any]:
        parts = stage.parts()
        version, moved = await parts.engines.rollback(name, _moving(body.deployments), accept_risk=body.accept_risk)
        return {**await _shown(parts, name), "version": version, "moved": list(moved)}

    @routes.post("/engines/{name}/adopt", status_code=202)
    async def adopt(name: str, body: EngineAdoptBody) -> dict[str, Any]:
        parts = stage.parts()
        node = await parts.engines.adopt(name, body.node, body.url)
        return {**await _shown(parts, name), "node": node}

    @routes.delete("/engines/{name}/adopt")
    async def disown(name: str, node: str | None = None) -> dict[str, Any]:
        parts = stage.parts()
        await parts.engines.disown(name, node)
        return await _shown(parts, name)

    return routes


async def _shown(parts: Parts, name: str) -> dict[str, Any]:
    return engine_views.engine(registry.adapter(name), await parts.seen())


def _wish(body: EngineInstallBody) -> InstallWish:
    return InstallWish(
        version=body.version,
        node=body.node,
        source=body.source or "",
        allow_unlisted=body.allow_unlisted,
        accept_risk=body.accept_risk,
    )


def _moving(deployments: str | list[str]) -> Moving:
    if isinstance(deployments, list):
        return Moving(names=tuple(deployments))
    return Moving(names=None if deployments == "all" else ())
