"""The admin API as one ASGI app: routes behind the gate. Built by `controller.process`."""

from fastapi import FastAPI

from controller.api import (
    blueprints,
    cluster,
    engines,
    failures,
    leaving,
    lives,
    members,
    models,
    places,
    secrets,
    store,
    usage,
    workloads,
)
from controller.api.gate import App, Gate
from controller.api.idempotency import Idempotency
from controller.api.stage import Stage
from core.infra.logs import Log
from core.infra.metrics import MetricsPage


def fast_api(stage: Stage, metrics: MetricsPage, *, version: str) -> FastAPI:
    """Return the routes alone, without the gate."""
    app = FastAPI(title="Slice admin API", version=version, docs_url=None, redoc_url=None, redirect_slashes=False)
    failures.install(app)
    app.include_router(members.router(stage))  # before the nodes by name: `tokens` is none
    app.include_router(cluster.router(stage, metrics))
    app.include_router(models.router(stage))
    app.include_router(store.router(stage))
    app.include_router(places.router(stage))
    app.include_router(lives.router(stage))
    app.include_router(blueprints.router(stage))
    app.include_router(workloads.router(stage))
    app.include_router(leaving.router(stage))
    app.include_router(engines.router(stage))
    app.include_router(secrets.router(stage))
    app.include_router(usage.router(stage))
    return app


def guarded(app: FastAPI, stage: Stage, *, operator_token: str, host: str, pepper: bytes, log: Log) -> App:
    """Return `app` behind the gate: what a server may be given."""
    repeatable = Idempotency(app, stage=stage, pepper=pepper)
    return Gate(repeatable, operator_token=operator_token, host=host, log=log)
