"""A pull in words and per cent. Pull objects of the admin API come in; used by every display of progress."""

from cli.tables import Item


def pull_percent(pull: Item) -> int | None:
    """Return how much of a pull is done, 0 to 100, or None while its size is unknown."""
    total = pull.get("bytes_total") or 0
    return min(100, 100 * int(pull.get("bytes_done") or 0) // int(total)) if total > 0 else None


def pull_sentence(pull: Item) -> str:
    """Return what a pull does now, e.g. `pulling smollm2` or why it waits."""
    name = pull.get("model") or "model"
    if pull.get("waiting"):
        is_running = pull.get("state") == "running"
        return f"pulling {name}: {pull['waiting']}" if is_running else f"{name} waits: {pull['waiting']}"
    return f"{name} is queued" if pull.get("state") == "queued" else f"pulling {name}"
