"""`slice events`."""

import json
import threading
from collections import deque
from collections.abc import Iterator
from typing import Annotated

import typer

from cli import reach
from cli.client import AdminClient, Json
from cli.human import local_time
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.polling import OUTAGE_S
from cli.printing import Printer
from cli.views import EVENTS
from core.errors import Failure, Kind

_PAGE = 1000
_RECONNECT_S = 1.0
_STOOD_S = 10.0  # a stream that breaks after this long had been open: connecting fails within 5 s


def events(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="How many last events to begin with.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print what happened; with -f and -o json one object a line."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    recent, newest = _recent(client, tail)
    if not follow:
        Printer(invocation, output).listing({"items": recent}, EVENTS)
        return
    for event in recent:
        _print(invocation, output, event)
    for event in _followed(client, invocation, newest):
        _print(invocation, output, event)


def _recent(client: AdminClient, tail: int) -> tuple[list[Json], int]:
    """Return the last `tail` events and the number of the newest; the API pages forwards from the oldest."""
    kept: deque[Json] = deque(maxlen=tail)
    newest = 0
    while True:
        page = client.items("events", after=newest, limit=_PAGE)
        kept.extend(page)
        newest = max([newest, *(int(item["seq"]) for item in page)])
        if len(page) < _PAGE:
            return list(kept), newest


def _followed(client: AdminClient, invocation: Invocation, after: int) -> Iterator[Json]:
    """Yield events as they happen; a broken stream is resumed after the last one seen.

    Raises:
        Failure: the controller refused, or stayed away for `OUTAGE_S`.
    """
    clock = invocation.clock
    pause = threading.Event()  # nobody sets it: its wait is a timer that Ctrl-C interrupts
    away_since: float | None = None
    while True:
        begun = clock.monotonic()
        try:
            for event in client.records("events", after=after, limit=_PAGE, follow=True):
                after, away_since = int(event["seq"]), None
                yield event
        except Failure as failure:
            now = clock.monotonic()
            if away_since is None or now - begun > _STOOD_S:  # it answered, however long it had nothing to say
                away_since = now
                invocation.terminal.note(f"{failure.message}; trying again")
            if failure.kind is not Kind.UNAVAILABLE or now - away_since > OUTAGE_S:
                raise
        pause.wait(_RECONNECT_S)


def _print(invocation: Invocation, output: Output, event: Json) -> None:
    terminal = invocation.terminal
    if output is Output.JSON:
        terminal.data(json.dumps(event, ensure_ascii=False))
    elif output is Output.YAML:
        terminal.data("---")
        Printer(invocation, output).value(event)
    elif output is Output.NAME:
        terminal.data(EVENTS.name(event))
    else:
        reason = f"  ({event['reason']})" if output is Output.WIDE and event.get("reason") else ""
        kind, subject = event.get("kind"), event.get("subject")
        terminal.data(f"{local_time(event.get('at'))}  {kind}  {subject}  {event.get('message')}{reason}")
