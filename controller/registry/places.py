"""Where models without a file of ours are: versions that engines hold which somebody else runs.

Comes in: a version, what nodes reported. Goes out: the place to serve it from. Called by `controller.registry`.
"""

from controller.exchange import AdoptedPlace
from controller.registry import adopted_store
from controller.registry.model import Version
from core.infra import postgres

ADOPTED = "adopted:"
"""Begins the source of an adopted version: `adopted:<node>/<name there>`."""


def is_adopted(version: Version) -> bool:
    """Return whether a version's content lies in an engine that somebody else runs."""
    return version.source.startswith(ADOPTED)


async def place_of(connection: postgres.Connection, version: Version) -> AdoptedPlace | None:
    """Return where an adopted version is served from now: the node it was first seen on, or another that has it."""
    first, _, remote = version.source.removeprefix(ADOPTED).partition("/")
    places = [
        one
        for one in await adopted_store.holders(connection)
        if f"sha256:{one.sha256}" == version.digest and one.format == version.format
    ]
    if not places:
        return None
    best = min(places, key=lambda one: (one.node_name != first, one.remote_model != remote, one.node_name))
    return AdoptedPlace(node_name=best.node_name, base_url=best.base_url, remote_model=best.remote_model)
