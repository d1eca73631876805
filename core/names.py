"""Names people type: which ones are allowed, and which one they probably meant.

Pure. Called at every edge that takes a name (REST, CLI, settings).
"""

import difflib
import re
from collections.abc import Iterable

from core.errors import Failure

NAME_PATTERN = re.compile(r"^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?\Z")
"""Model, deployment, node and key names: DNS-label-like, with dots as in `llama3.2`, 1 to 63 characters."""

_VERSION = re.compile(r"^v?([1-9][0-9]{0,8})\Z")


def checked_name(kind: str, name: str) -> str:
    """Return `name` when it may name a `kind` of thing.

    Raises:
        Failure: `request.invalid_name` when it is empty, too long or has other characters.
    """
    if not NAME_PATTERN.match(name):
        raise Failure(
            "request.invalid_name",
            f"{name[:80]!r} cannot name a {kind}",
            hint="use a-z, 0-9, '.', '_' and '-', starting and ending with a letter or digit, up to 63 characters",
        )
    return name


def split_version(text: str) -> tuple[str, int | None]:
    """Return the name and the version's number that `text` means: `m@v2` and `m@2` are 2, `m` and `m@latest` None.

    The name itself is not looked at: whoever looks it up says best what it should have been.

    Raises:
        Failure: `request.invalid_name` when something else stands behind the `@`, or nothing before it.
    """
    name, mark, tail = text.partition("@")
    if name and (not mark or tail == "latest"):
        return name, None
    match = _VERSION.match(tail)
    if not name or match is None:
        raise Failure(
            "request.invalid_name",
            f"{text[:80]!r} names no version of a model",
            hint="write MODEL@vN with a number from 1, e.g. smollm2@v2, or MODEL alone for the newest",
            param="model",
        )
    return name, int(match[1])


def version_text(name: str, number: int | None) -> str:
    """Return how version `number` of the model `name` is written; the opposite of `split_version`."""
    return name if number is None else f"{name}@v{number}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest of `known`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
