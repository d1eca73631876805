"""REST routes of whole clusters as files: export, and apply with its rehearsal; docs/admin-api.md is their contract."""

from typing import Any

from fastapi import APIRouter, Request, Response

from controller.api import model_views
from controller.api.stage import Stage
from controller.blueprint.model import Change
from core.errors import Failure

MEDIA_TYPE = "application/yaml"
"""RFC 9512."""


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/export", response_class=Response, responses={200: {"content": {MEDIA_TYPE: {}}}})
    async def export() -> Response:
        return Response(await stage.parts().blueprints.exported(), media_type=MEDIA_TYPE)

    @routes.post("/apply")
    async def apply(request: Request, *, dry_run: bool = False, prune: bool = False) -> dict[str, Any]:
        parts = stage.parts()
        try:
            text = (await request.body()).decode()
        except UnicodeDecodeError as error:
            raise Failure("request.invalid_field", "the file is no UTF-8") from error
        applied = await parts.blueprints.apply(text, prune=prune, is_rehearsal=dry_run)
        seen = await parts.seen()
        word = "planned" if dry_run else "done"
        return {
            "dry_run": dry_run,
            "is_complete": not applied.waiting,
            "changes": [
                *(_change(one, word) for one in applied.done),
                *(_change(one, "waiting") for one in applied.waiting),
            ],
            "pulls": [model_views.pull(pull, seen) for pull in applied.pulls],
        }

    return routes


def _change(change: Change, state: str) -> dict[str, Any]:
    return {
        "action": change.action.value,
        "kind": change.kind.value,
        "name": change.name,
        "state": state,
        "way": change.way.value if change.way else None,
        "fields": [{"field": one.name, "from": one.before, "to": one.after} for one in change.fields],
    }
