"""Names people type: which ones are allowed, and which one they probably meant.

Pure. Called at every edge that takes a name (REST, CLI, settings).
"""

import difflib
import re
from collections.abc import Iterable

from core.errors import Failure

NAME_PATTERN = re.compile(r"^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?\Z")
"""Model, deployment, node and key names: DNS-label-like, with dots as in `llama3.2`, 1 to 63 characters."""


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest of `known`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
