"""The one check of `resource_version`: whether a thing is still what the caller looked at. Called by the services."""

from core.errors import Failure


def check_version(kind: str, name: str, current: int, expected: int | None) -> None:
    """Check that a thing is at the resource version that its caller expects; None expects nothing.

    Raises:
        Failure: `request.version_conflict`, with the current one.
    """
    if expected is not None and expected != current:
        raise Failure(
            "request.version_conflict",
            f"{kind} {name!r} was changed by somebody else: it is at resource version {current}, not {expected}",
            hint="look at it again, then repeat the change",
            param="resource_version",
        )
