"""Reads a JSON object that a stranger wrote: one size bound, no doubled names, no words that are not JSON.

Called by the readers of `core.formats`; each says under which code it fails. Numbers stay Python's.
"""

import json
from collections.abc import Callable
from typing import Any, NoReturn

from core.errors import Failure

Fault = Callable[[str], Failure]
"""Makes the failure of a reader from what is wrong."""


def json_object(raw: bytes, *, limit_bytes: int, fault: Fault) -> dict[str, Any]:
    """Return the object in `raw`.

    Raises:
        Failure: `fault`'s own, when it is longer than `limit_bytes`, no JSON, no object, or has a name twice.
    """
    if len(raw) > limit_bytes:
        raise fault(f"it has {len(raw)} bytes, more than {limit_bytes}")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        named = dict(found)
        if len(named) != len(found):
            seen: set[str] = set()
            doubled = next(name for name, _ in found if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise fault(f"the name {doubled[:200]!r} stands there twice")
        return named

    def constant(word: str) -> NoReturn:
        raise fault(f"{word} is no JSON")

    try:
        found = json.loads(raw.decode(), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise fault("it is not JSON") from error
    if not isinstance(found, dict):
        raise fault("it is not a JSON object")
    return found
