"""Versions of engines that must not be run.

In: an adapter, a version. Out: a sentence, or nothing. Pure; called by the controller and by `slice doctor`.
"""

from adapters.contract import Adapter, Floored
from core.errors import Failure
from core.versions import is_below


def floor_of(adapter: Adapter) -> tuple[str, str] | None:
    """Return the lowest safe version of an engine and the advisories that set it, None when it has no floor."""
    return adapter.floor if isinstance(adapter, Floored) else None


def below_floor(adapter: Adapter, version: str) -> str:
    """Return in a sentence why `version` must not be run, "" when nothing is known against it."""
    floor = floor_of(adapter)
    if floor is None or not version or not is_below(version, floor[0]):
        return ""
    return f"{adapter.name} {version} is below {floor[0]}: {floor[1]}"


def check_floor(adapter: Adapter, version: str) -> None:
    """Check that nothing is known against a version.

    Raises:
        Failure: `engine.below_floor`, with the advisories.
    """
    if why := below_floor(adapter, version):
        floor = floor_of(adapter)
        least = floor[0] if floor else ""
        raise Failure(
            "engine.below_floor",
            why,
            hint=f"take {least} or newer; `slice engine install {adapter.name}@{version} --accept-risk` insists",
            param="version",
        )
