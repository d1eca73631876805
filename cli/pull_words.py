"""A pull, or a copy, in words and per cent. Objects of the admin API come in; used by every display of progress."""

from cli.tables import Item


def pull_percent(pull: Item) -> int | None:
    """Return how much of a pull is done, 0 to 100, or None while its size is unknown."""
    total = pull.get("bytes_total") or 0
    return min(100, 100 * int(pull.get("bytes_done") or 0) // int(total)) if total > 0 else None


def pull_sentence(pull: Item) -> str:
    """Return what a pull does now, e.g. `pulling smollm2` or why it waits."""
    name = pull.get("model") or "model"
    doing = f"copying {name} to {pull.get('node')}" if is_copy(pull) else f"pulling {name}"
    if pull.get("waiting"):
        is_running = pull.get("state") == "running"
        return f"{doing}: {pull['waiting']}" if is_running else f"{name} waits: {pull['waiting']}"
    return f"{name} is queued" if pull.get("state") == "queued" else doing


def is_copy(pull: Item) -> bool:
    """Return whether a pull brings files that the cluster has to one more node."""
    return str(pull.get("id") or "").startswith("cpy_")


def again(pull: Item) -> str:
    """Return the command that goes on with a pull that ended before it was done."""
    name = str(pull.get("model"))
    if not is_copy(pull):
        return f"slice pull {name}"
    return f"slice model copy {name}@v{pull.get('version')} --to {pull.get('node')}"
