"""The release of the installed distribution."""

DISTRIBUTION = "slice-cluster"


def release() -> str:
    """Return the installed release, e.g. `0.1.0`, or `unknown` in a tree that was never installed."""
    from importlib.metadata import PackageNotFoundError, version  # 20 ms that only a version question has to pay

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
