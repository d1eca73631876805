"""`slice stage`."""

from typing import Annotated

import typer

from cli import reach
from cli.invocation import Invocation
from cli.options import ApproveOption, Output, OutputOption
from cli.printing import Printer
from cli.views import STAGES, VERSIONS
from core.errors import Failure
from core.names import did_you_mean, split_version
from core.states import Stage


def stage(
    ctx: typer.Context,
    version: Annotated[str, typer.Argument(metavar="MODEL@vN", help="The version; or the word `history`.")],
    to: Annotated[str, typer.Argument(metavar="STAGE", help="candidate, staging, production or retired.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in its history.")] = "",
    approve_template: ApproveOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Move a version of a model to another stage; `slice stage history MODEL@vN` lists its moves."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    printer = Printer(invocation, output)
    if version == "history":
        name, number = _numbered(to)
        printer.listing(client.get("models", name, "versions", str(number), "stages"), STAGES)
        return
    name, number = _numbered(version)
    if to not in set(Stage):
        raise Failure(
            "request.usage",
            f"there is no stage {to!r}.{did_you_mean(to, list(Stage))}",
            hint=f"stages: {', '.join(Stage)}",
        )
    body = {"stage": to, "reason": reason}
    if approve_template is not None:
        body["approve_template"] = approve_template
    moved = client.put("models", name, "versions", str(number), "stage", body=body)
    printer.done(moved, VERSIONS, f"{name}@v{number} is {moved.get('stage')}")


def _numbered(text: str) -> tuple[str, int]:
    name, number = split_version(text)
    if number is None:
        raise Failure(
            "request.usage",
            f"{text!r} names no version",
            hint=f"stages belong to versions: `slice stage {name}@vN STAGE` (`slice show {name}` lists them)",
        )
    return name, number
