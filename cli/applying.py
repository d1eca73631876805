"""Makes a cluster what a file says: sends the file, waits for the pulls that it begins, and sends it again.

The text of a file comes in; the changes that were made go out. Called by `cli.commands.blueprints`. It reads nothing of
the file: what it means, and what is wrong with it, the controller says.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from cli import pulling
from cli.client import AdminClient, Json
from cli.invocation import Invocation
from core.errors import Failure

MEDIA_TYPE = "application/yaml"
_SIGNS = {"create": "+", "update": "~", "delete": "-"}
_WAYS = {"copy": "its content is here already", "builtin": "it has no file", "pull": "to be pulled"}


def sent(client: AdminClient, text: str, *, prune: bool, is_rehearsal: bool) -> Json:
    """Send the file and return what it changes, or would change."""
    return client.post_text("apply", text=text, media_type=MEDIA_TYPE, prune=prune, dry_run=is_rehearsal)


def applied(client: AdminClient, invocation: Invocation, text: str, *, prune: bool) -> list[Json]:
    """Apply the file, with all the pulls that it needs, and return every change that was made.

    Raises:
        Failure: the file was refused, a pull failed, or one brought something else than the file says.
    """
    made: list[Json] = []
    waited: set[tuple[str, str]] = set()
    while True:
        answer = sent(client, text, prune=prune, is_rehearsal=False)
        made += [change for change in answer.get("changes") or [] if change.get("state") == "done"]
        pulls = answer.get("pulls") or []
        if not pulls:
            return made
        for pull in pulls:
            key = (str(pull.get("model")), str(pull.get("source")))
            if key in waited:
                raise Failure(
                    "source.digest_mismatch",
                    f"{key[1]} was pulled, but it is not the version of {key[0]} that the file names",
                    hint="its content has changed since: correct the digest in the file, or pin the source",
                )
            waited.add(key)
            if pull.get("state") != "done":
                pulling.followed(client, invocation.terminal, invocation.clock, pull)


def lines(changes: list[Json]) -> Iterator[str]:
    """Yield what people read: one line per thing, its fields below it."""
    for change in changes:
        notes = [_WAYS[change["way"]]] if change.get("way") in _WAYS else []
        if change.get("state") == "waiting" and change.get("way") is None:
            notes.append("after its pull")
        note = f"  ({', '.join(notes)})" if notes else ""
        yield f"{_SIGNS.get(str(change.get('action')), '?')} {change.get('kind')} {change.get('name')}{note}"
        for field in change.get("fields") or []:
            yield f"    {field.get('field')}: {_moved(field)}"


def _moved(field: Mapping[str, Any]) -> str:
    before, after = _text(field.get("from")), _text(field.get("to"))
    if before and after:
        return f"{before} -> {after}"
    return after if after else f"{before} -> default"


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(str(part) for part in value) or "none"
    return str(value)
