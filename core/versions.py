"""Versions of programs, compared: `0.33.0`, `2026.10.11549`, `b11865`, `0.33.0-rc2`.

Pure. Programs number themselves as they like, so this is no version of PEP 440: the numbers decide, then whether the
text names a preview. Called by the node agent (the newest of several), the controller and `slice doctor` (floors).
"""

import re
from collections.abc import Iterable

_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_PREVIEW = re.compile(r"^[.\-_]?(?:a|b|c|rc|alpha|beta|pre|preview|dev)[.\-_]?\d*")

_LONGEST = 128  # far above any real one: the time that a stranger's text takes is bounded

VersionKey = tuple[tuple[int, ...], bool, tuple[int, ...]]


def version_key(text: str) -> VersionKey:
    """Return what orders versions: numbers without trailing zeros, previews before releases, then what follows."""
    text = text[:_LONGEST]
    found = _RELEASE.search(text)
    if found is None:
        return (), False, ()
    numbers = [int(part) for part in found[0].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    rest = text[found.end() :].lower()
    return tuple(numbers), _PREVIEW.match(rest) is None, tuple(int(part) for part in re.findall(r"\d+", rest))


def is_below(text: str, floor: str) -> bool:
    """Return whether the version `text` is older than `floor`; a text without any number is not."""
    numbers, *_ = version_key(text)
    return bool(numbers) and version_key(text) < version_key(floor)


def newest_first(versions: Iterable[str]) -> list[str]:
    """Return `versions` without repetitions, the newest first."""
    return sorted(set(versions), key=lambda version: (version_key(version), version), reverse=True)
