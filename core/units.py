"""Bytes and durations as people write and read them; inside, bytes are `int` and durations seconds."""

import re

from core.errors import Failure

_BINARY = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*$", re.IGNORECASE)
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

MIB = 1024**2
GIB = 1024**3


def bytes_from_text(text: str) -> int:
    """Return the bytes that `text` names; `4GiB`, `4g` and `4GB` all mean 4 x 1024^3.

    Raises:
        Failure: `request.invalid_size`.
    """
    found = _SIZE.match(text)
    if found is None:
        raise Failure("request.invalid_size", f"{text!r} is no size", hint="write it as 512MiB or 4GiB")
    return int(float(found.group(1)) * _BINARY[found.group(2).lower()])


def text_from_bytes(count: int) -> str:
    """Return `count` bytes as a short text with a binary unit, e.g. `93.8 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def seconds_from_text(text: str) -> float:
    """Return the seconds that `text` names (`250ms`, `10s`, `5m`, `2h`, `30d`).

    Raises:
        Failure: `request.invalid_duration`.
    """
    found = _DURATION.match(text)
    if found is None:
        raise Failure(
            "request.invalid_duration", f"{text!r} is no duration", hint="write it as 250ms, 10s, 5m, 2h or 30d"
        )
    return float(found.group(1)) * _SECONDS[found.group(2)]


def text_from_seconds(seconds: float) -> str:
    """Return `seconds` as a short text, e.g. `42s`, `3m10s`, `2h05m`, `4d`."""
    whole = int(max(0.0, seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d"
