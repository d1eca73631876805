"""The first key and the starter model of a new cluster, brought up through the admin API like anybody's model.

Called by the supervisor when all parts are ready. A cluster that had its starter once is left alone: an operator who
removed the model does not get it back at the next `slice up`.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from cli.client import Address, AdminClient
from cli.cluster.journal import Journal, Mark
from core.errors import CODES, Failure
from core.infra import cluster
from core.infra.cluster import ClusterBlock
from core.infra.settings import Settings

KEY_NAME = "default"
_LOOK_EVERY_S = 0.1
_GIVE_UP_AFTER_LOOKS = 9000  # 15 minutes: an engine's installation and 98 MB over a slow line


async def ensure(block: ClusterBlock, settings: Settings, journal: Journal) -> None:
    """Make the first key, and deploy the starter model of a new cluster; wait until it answers.

    Raises:
        Failure: the model could not be brought up; the cluster itself runs.
    """
    address = Address(
        url=block.controller_url, who="controller", code="controller.unreachable", hint="`slice doctor` looks further"
    )
    client = AdminClient(address, cluster.read_secret(block, "operator_token"))
    cancelled = threading.Event()
    try:
        await asyncio.to_thread(_ensure, block, settings, journal, client, cancelled)
    finally:
        # The thread cannot be cancelled; it looks at this between two calls.
        cancelled.set()


def _ensure(
    block: ClusterBlock, settings: Settings, journal: Journal, client: AdminClient, cancelled: threading.Event
) -> None:
    _ensure_key(block, client)
    marker = block.data_dir / "starter.done"
    model = settings.starter_model
    if not model or marker.exists():
        return
    journal.write(Mark.BEGUN, "starter", f"pulling {model}")
    deployment = _deployed(client, model)
    if deployment is None:
        pull = client.post("pulls", body={"name": model, "source": None})
        _wait(cancelled, lambda: _pulled(client, str(pull["id"]), journal))
        client.post("deployments", body={"model": model})
    _wait(cancelled, lambda: _is_serving(client, model, journal))
    marker.write_text(f"{model}\n")
    journal.write(Mark.DONE, "starter", f"{model} serves")


def _ensure_key(block: ClusterBlock, client: AdminClient) -> None:
    file = block.secret_file("api_key")
    if file.exists():
        return
    names = {str(item["name"]) for item in client.items("keys")}
    # A key whose secret was never written down (we were killed in between) cannot be read again: make another.
    name = next(name for name in (KEY_NAME, *(f"{KEY_NAME}-{count}" for count in range(2, 1000))) if name not in names)
    made = client.post("keys", body={"name": name, "expires_in_s": None})
    cluster.write_private(file, str(made["key"]))


def _deployed(client: AdminClient, name: str) -> dict[str, Any] | None:
    try:
        return client.get("deployments", name)
    except Failure as failure:
        if failure.code == "deployment.not_found":
            return None
        raise


def _pulled(client: AdminClient, pull_id: str, journal: Journal) -> bool:
    pull = client.get("pulls", pull_id)
    if pull["state"] in {"failed", "cancelled"}:
        error = pull.get("error") or {}
        raise _failure(error, f"the pull was {pull['state']}")
    if pull["state"] == "done":
        return True
    total = int(pull["bytes_total"])
    share = f" {100 * int(pull['bytes_done']) // total} %" if total else ""
    journal.write(Mark.PROGRESS, "starter", str(pull.get("waiting") or f"pulling {pull['model']}{share}"))
    return False


def _is_serving(client: AdminClient, name: str, journal: Journal) -> bool:
    deployment = client.get("deployments", name)
    if deployment["state"] == "failed":
        raise _failure(deployment.get("refusal") or {}, str(deployment["waiting"]))
    if deployment["state"] == "ready":
        return True
    journal.write(Mark.PROGRESS, "starter", str(deployment["waiting"] or f"starting {name}"))
    return False


def _failure(error: dict[str, Any], otherwise: str) -> Failure:
    code = str(error.get("code"))
    return Failure(
        code if code in CODES else "cluster.start_failed",
        str(error.get("message") or otherwise),
        hint=str(error.get("hint") or "`slice ps` and `slice events` say more"),
    )


def _wait(cancelled: threading.Event, is_done: Callable[[], bool]) -> None:
    for _ in range(_GIVE_UP_AFTER_LOOKS):
        try:
            if is_done():
                return
        except Failure as failure:
            # The controller may be restarting under us; everything else is final.
            if failure.code not in {"controller.unreachable", "controller.not_ready", "storage.unavailable"}:
                raise
        if cancelled.wait(_LOOK_EVERY_S):
            raise Failure("cluster.start_failed", "the start was interrupted", hint="`slice up` goes on with it")
    raise Failure("cluster.start_failed", "the starter model did not answer in time", hint="`slice ps` says why")
