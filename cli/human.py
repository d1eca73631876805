"""Sizes, ages and instants as people read them in tables.

Pure: values of the admin API and the current instant come in, short texts go out; an absent value is `-`.
"""

from datetime import UTC, datetime

from core.units import text_from_bytes, text_from_seconds

ABSENT = "-"


def size(count: object) -> str:
    """Return bytes as `93.8 MiB`, or `-` when `count` is no positive number."""
    return text_from_bytes(int(count)) if isinstance(count, int | float) and count > 0 else ABSENT


def instant(text: object) -> datetime | None:
    """Return the instant that an ISO 8601 `text` names, or None when it names none."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def age(text: object, now: datetime) -> str:
    """Return how long ago an ISO 8601 instant was, e.g. `3m10s`, or `-` when there is none."""
    found = instant(text)
    return ABSENT if found is None else text_from_seconds((now - found).total_seconds())


def local_time(text: object) -> str:
    """Return an ISO 8601 instant as `2026-11-22 22:29:11` in this machine's time zone, or `-`."""
    found = instant(text)
    return ABSENT if found is None else found.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def count_text(number: object) -> str:
    """Return a count of parameters as `134.5M` or `7.2B`, or `-` when unknown."""
    if not isinstance(number, int | float) or number <= 0:
        return ABSENT
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"


def harmless(text: str) -> str:
    """Return `text` without control characters (newline and tab stay): it may come from a model or an engine.

    A terminal obeys escape sequences, so text that others wrote must not bring any (CWE-150).
    """
    if text.isprintable():
        return text
    return "".join(mark for mark in text if mark in "\n\t" or not (ord(mark) < 32 or 127 <= ord(mark) < 160))
