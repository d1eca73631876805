"""REST routes of where models' files are, of copies to further nodes and of what leaves one; docs/admin-api.md."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from controller.api import views
from controller.api.bodies import PlaceBody
from controller.api.seeing import Seen
from controller.api.stage import Parts, Stage
from controller.registry.copies import PREFIX, Leaving, is_of
from controller.registry.model import Copy, Model, Version
from core.ids import NodeId
from core.names import version_text
from core.states import NodeState, PullState
from core.units import text_from_seconds

Json = dict[str, Any]
Number = Annotated[int | None, Query(ge=1, le=999_999_999)]


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/models/{name}/where")
    async def where(name: str, version: Number = None) -> Json:
        parts = stage.parts()
        async with parts.database.snapshot() as connection:
            model = await parts.registry.model_in(connection, name)
            if version is not None:
                await parts.registry.numbered(connection, model, version)
            every = await parts.registry.everything(connection)
            seen = await parts.seen(connection)
        versions = [one for one in every.versions if one.model_id == model.model_id and version in (None, one.number)]
        return {"items": [item for one in versions for item in _places(model, one, seen)]}

    @routes.post("/models/{name}/copies", status_code=202)
    async def begin(name: str, body: PlaceBody) -> JSONResponse:
        parts = stage.parts()
        made = await parts.copies.begin(version_text(name, body.version), body.to, away_from=body.away_from)
        found = copy(made, await parts.seen())
        return JSONResponse(found, status_code=200 if made.state == PullState.DONE.value else 202)

    @routes.delete("/models/{name}/nodes/{node}", status_code=202)
    async def take_off(name: str, node: str, version: Number = None) -> Json:
        return _left(await stage.parts().copies.take_off(version_text(name, version), node), node)

    return routes


def is_copy(pull_id: str) -> bool:
    """Return whether an id among the pulls is that of a copy."""
    return pull_id.startswith(f"{PREFIX}_")


async def shown(parts: Parts, copy_id: str) -> Json:
    """Return one copy as it is now.

    Raises:
        Failure: `registry.pull_not_found`, `storage.unavailable`.
    """
    async with parts.database.snapshot() as connection:
        row = await parts.copies.copy(connection, copy_id)
        seen = await parts.seen(connection)
    return copy(row, seen)


def copy(row: Copy, seen: Seen) -> Json:
    """Return one copy in the form of a pull; while it runs its bytes are what is there and what the node reports."""
    sizes = {file.sha256: file.size_bytes for file in seen.picture.files.get(row.version_id, ())}
    held = seen.picture.node_files.get(NodeId(row.node_id), frozenset())
    node = seen.live.get(NodeId(row.node_id))
    reports = node.observation.files if node is not None and node.observation is not None else ()
    mine = [one for one in reports if is_of(one, row.copy_id) and one.state in (PullState.QUEUED, PullState.RUNNING)]
    is_open = row.finished_at is None
    here = sum(size for sha256, size in sizes.items() if sha256 in held)
    total = sum(sizes.values())
    is_running = is_open and any(one.state is PullState.RUNNING for one in mine)
    waiting = ""
    if is_open and node is None:
        waiting = f"node {row.node_name} has not been heard of"
    elif is_open and node is not None and node.state is not NodeState.READY:
        waiting = f"node {row.node_name} has not been heard of for {text_from_seconds(node.silent_s)}"
    elif is_open and not is_running:
        waiting = next((one.message for one in mine if one.message), f"node {row.node_name} has been asked to bring it")
    return {
        "id": row.copy_id,
        "model": row.model,
        "version": row.version,
        "source": row.source,
        "engine": None,
        "node": row.node_name,
        "from": next((one.name for one in seen.picture.nodes if one.node_id == row.from_node), None),
        "state": PullState.RUNNING.value if is_running else row.state,
        "bytes_done": min(total, here + sum(one.bytes_done for one in mine)) if is_open else here,
        "bytes_total": total,
        "error": {"code": row.code, "message": row.message, "hint": ""} if row.code else None,
        "created_at": views.instant(row.created_at),
        "finished_at": views.instant(row.finished_at),
        "waiting": waiting,
    }


def _places(model: Model, version: Version, seen: Seen) -> Iterator[Json]:
    """Yield each node that has files of a version, or is to have them."""
    files = {file.sha256: file.size_bytes for file in seen.picture.files.get(version.version_id, ())}
    copying = {copy.node_id for copy in seen.picture.copies if copy.version_id == version.version_id}
    deployments = {row.deployment_id: row.name for row in seen.picture.deployments}
    for node in seen.picture.nodes:
        here = [one for one in seen.picture.stored if one.node_id == node.node_id and one.sha256 in files]
        if not here and node.node_id not in copying:
            continue
        users = {
            deployments[row.deployment_id]
            for row in seen.picture.replicas
            if row.node_id == node.node_id and row.version_id == version.version_id
        }
        yield {
            "model": model.name,
            "version": version.number,
            "node": node.name,
            "files": len(here),
            "files_total": len(files),
            "size_bytes": sum(one.size_bytes for one in here),
            "total_bytes": sum(files.values()),
            "is_whole": len(here) == len(files),
            "is_coming": node.node_id in copying,
            "is_leaving": any(one.is_leaving for one in here),
            "used_by": sorted(users),
        }


def _left(found: Leaving, node: str) -> Json:
    def shown(sha256: str, size: int, sharers: Any) -> Json:
        return {"sha256": sha256, "size_bytes": size, "shared_with": list(sharers)}

    return {
        "node": node,
        "items": [shown(one.sha256, one.size_bytes, one.sharers) for one in found.items],
        "total_bytes": found.total_bytes,
        "kept": [shown(one.sha256, one.size_bytes, one.sharers) for one in found.kept],
    }
