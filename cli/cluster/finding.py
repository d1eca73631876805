"""One thing that `slice doctor` looked at, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at: fine (True), wrong (False), or worth knowing (None)."""

    name: str
    is_ok: bool | None
    detail: str
    hint: str = ""
