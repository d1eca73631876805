"""`slice usage`."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from cli import reach
from cli.human import ABSENT
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.tables import Column, Item, View
from core.units import seconds_from_text


class By(StrEnum):
    """What requests are summed up by."""

    KEY = "key"
    PROJECT = "project"
    MODEL = "model"
    DEPLOYMENT = "deployment"
    NODE = "node"
    DAY = "day"


def usage(
    ctx: typer.Context,
    by: Annotated[By, typer.Option("--by", help="What requests are summed up by.")] = By.KEY,
    since: Annotated[str, typer.Option("--since", metavar="DURATION", help="How far back, e.g. 24h or 30d.")] = "24h",
    output: OutputOption = Output.TABLE,
) -> None:
    """Sum up what requests used: by key, project, model, deployment, node or day.

    A door tells of a request within about a second of its end. Tokens that an engine did not tell are estimated;
    ESTIMATED counts the requests where that is so.
    """
    invocation: Invocation = ctx.obj
    begins = invocation.clock.now() - timedelta(seconds=seconds_from_text(since))
    found = reach.admin(invocation).get("usage", by=by.value, since=begins.isoformat())
    Printer(invocation, output).listing(found, _view(by))


def _view(by: By) -> View:
    def group(item: Item, _: datetime) -> str:
        return str(item.get("name") or ABSENT)

    return View(
        name=lambda item: str(item.get("name") or ABSENT),
        empty="no requests in that time",
        columns=(
            Column(title=by.value.upper(), cell=group),
            *(_number(title, key) for title, key in _COUNTS.items()),
            *(_number(title, key, is_optional=True) for title, key in _FAULTS.items()),
        ),
    )


_COUNTS = {
    "REQUESTS": "requests",
    "INPUT": "input_tokens",
    "CACHED": "cached_tokens",
    "OUTPUT": "output_tokens",
    "ESTIMATED": "estimated",
}
_FAULTS = {"REFUSED": "refused", "FAILED": "failed", "CUT": "cut", "GONE": "gone"}


def _number(title: str, key: str, *, is_optional: bool = False) -> Column:
    def cell(item: Item, _: datetime) -> str:
        number = item.get(key)
        return ABSENT if not isinstance(number, int) or (is_optional and number == 0) else str(number)

    return Column(title=title, cell=cell, is_number=True, is_optional=is_optional)
