"""Brings a model into the cluster and waits for it: what `slice pull` does, and `slice run` before it can answer.

A name and a source come in; a finished pull goes out. Ctrl-C cancels the pull through the API and passes on.
"""

from dataclasses import dataclass

from cli.client import AdminClient, Json, failure_of
from cli.polling import looks
from cli.progress import pull_bar
from cli.pull_words import again, is_copy
from cli.terminal import Terminal
from cli.views import newest_version
from core.clock import Clock
from core.errors import Failure

_MOVING = frozenset({"queued", "running"})


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A pull that is done; `was_here` says that the model needed no pull."""

    pull: Json
    was_here: bool


def pulled(
    client: AdminClient, terminal: Terminal, clock: Clock, *, name: str, source: str | None, engine: str | None = None
) -> Pulled:
    """Pull `name` from `source` (None: the catalogue's) for `engine` (None: any) and return the finished pull.

    Raises:
        Failure: the pull was refused, failed, or was cancelled by somebody.
        KeyboardInterrupt: the user interrupted; the pull has been cancelled.
    """
    body: dict[str, object] = {"name": name, "source": source}
    if engine is not None:
        body["engine"] = engine
    pull = client.post("pulls", body=body)
    if pull.get("state") == "done":
        return Pulled(pull=pull, was_here=True)
    return Pulled(pull=followed(client, terminal, clock, pull), was_here=False)


def followed(client: AdminClient, terminal: Terminal, clock: Clock, pull: Json) -> Json:
    """Show how `pull` goes on until it ends, and return it.

    Raises:
        Failure: the pull failed, or was cancelled by somebody.
        KeyboardInterrupt: the user interrupted; the pull has been cancelled.
    """
    bar = pull_bar(terminal)
    try:
        bar.show(pull)
        begun = pull

        def tell_outage(reason: str) -> None:
            bar.show({**begun, "waiting": reason})

        for pull in looks(lambda: client.get("pulls", str(begun["id"])), tell_outage, clock):
            bar.show(pull)
            if pull.get("state") not in _MOVING:
                break
    except KeyboardInterrupt:
        bar.close()
        _cancel(client, terminal, pull)
        raise
    finally:
        bar.close()
    return _checked(pull)


def tell_findings(client: AdminClient, terminal: Terminal, name: str) -> None:
    """Tell what is odd about the chat template of the newest version of `name`: the operator decides."""
    try:
        findings = newest_version(client.get("models", name)).get("template_findings") or []
    except Failure:
        return  # the pull has worked; what it brought can be looked at later
    for finding in findings:
        terminal.note(f"note: in its chat template: {finding}")
    if findings:
        terminal.note(f"`slice show {name} --template` shows it")


def _checked(pull: Json) -> Json:
    if pull.get("state") == "done":
        return pull
    if pull.get("error"):
        raise failure_of(pull["error"])
    word = "copy" if is_copy(pull) else "pull"
    raise Failure(
        "source.cancelled", f"the {word} of {pull.get('model')} was cancelled", hint=f"`{again(pull)}` begins it anew"
    )


def _cancel(client: AdminClient, terminal: Terminal, pull: Json) -> None:
    word = "copy" if is_copy(pull) else "pull"
    try:
        client.delete("pulls", str(pull["id"]))
    except Failure as failure:
        terminal.note(f"the {word} could not be cancelled: {failure}")
        return
    terminal.note(f"{word} cancelled; `{again(pull)}` begins it anew")
