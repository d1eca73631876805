"""REST route of usage; docs/admin-api.md."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from controller.api.stage import Stage
from controller.usage.model import By, Sum

Instant = Annotated[AwareDatetime | None, Query()]


def router(stage: Stage) -> APIRouter:
    """Return the routes, which ask `stage` for the services."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/usage")
    async def usage(by: By = By.KEY, since: Instant = None, until: Instant = None) -> dict[str, Any]:
        found = await stage.parts().usage.sums(by, since=since, until=until)
        return {"by": by.value, "items": [shown(one) for one in found]}

    return routes


def shown(one: Sum) -> dict[str, Any]:
    """Return one group's sums."""
    return vars(one) | {"total_s": round(one.total_s, 3)}
