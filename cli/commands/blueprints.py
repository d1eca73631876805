"""`slice export`, `slice diff` and `slice apply`."""

from pathlib import Path
from typing import Annotated

import typer

from cli import applying, exits, reach, readiness
from cli.client import AdminClient, Json
from cli.invocation import Invocation
from cli.options import DurationOption, Output, OutputOption, seconds
from cli.printing import Printer
from core.errors import Failure

FileOption = Annotated[
    Path, typer.Option("--file", "-f", metavar="FILE", help="File of `slice export`'s form; - is standard input.")
]
PruneOption = Annotated[
    bool, typer.Option("--prune", help="Delete what the sections of the file do not name, and its deployments.")
]


def export(ctx: typer.Context) -> None:
    """Print the models, aliases and deployments of the cluster as a file for `slice apply`."""
    invocation: Invocation = ctx.obj
    text = "".join(reach.admin(invocation).text("export", is_followed=False))
    invocation.terminal.data(text.rstrip("\n"))


def diff(
    ctx: typer.Context,
    file: FileOption,
    prune: PruneOption = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 when something would change.")] = False,
    output: OutputOption = Output.TABLE,
) -> int:
    """Print what `slice apply` would change, and change nothing."""
    invocation: Invocation = ctx.obj
    answer = applying.sent(reach.admin(invocation), _read(invocation, file), prune=prune, is_rehearsal=True)
    changes = answer.get("changes") or []
    if output in {Output.JSON, Output.YAML}:
        Printer(invocation, output).value(answer)
    elif changes:
        _print(invocation, changes, output)
    else:
        invocation.terminal.note("nothing would change")
    return exits.FAILED if exit_code and changes else exits.OK


def apply(
    ctx: typer.Context,
    file: FileOption,
    prune: PruneOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would change, as `slice diff`.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when all that was deployed or changed serves.")] = False,
    timeout: DurationOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Make the cluster what a file says; pulls what is missing, and changes nothing that is so already."""
    invocation: Invocation = ctx.obj
    patience = seconds(timeout)
    if dry_run:
        return diff(ctx, file, prune, False, output)
    client = reach.admin(invocation)
    changes = applying.applied(client, invocation, _read(invocation, file), prune=prune)
    if output in {Output.JSON, Output.YAML}:
        Printer(invocation, output).value({"changes": changes})
    elif changes:
        _print(invocation, changes, output)
    else:
        invocation.terminal.note("nothing to change: the cluster is so already")
    return _awaited(client, invocation, changes, patience, output) if wait else exits.OK


def _print(invocation: Invocation, changes: list[Json], output: Output) -> None:
    if output is Output.NAME:
        for change in changes:
            invocation.terminal.data(str(change.get("name")))
        return
    for line in applying.lines(changes):
        invocation.terminal.data(line)


def _awaited(
    client: AdminClient, invocation: Invocation, changes: list[Json], timeout_s: float | None, output: Output
) -> int:
    names = [one["name"] for one in changes if one.get("kind") == "deployment" and one.get("action") != "delete"]
    for name in dict.fromkeys(str(name) for name in names):
        found = client.get("deployments", name)
        if not found.get("replicas") or not found.get("is_enabled", True):
            continue
        ended = readiness.awaited(
            client, invocation.terminal, invocation.clock, name=name, asked=name, timeout_s=timeout_s, is_change=True
        )
        if isinstance(ended, readiness.NotServing):
            return readiness.told(ended, invocation.terminal, output)
        invocation.terminal.note(f"{name} serves")
    return exits.OK


def _read(invocation: Invocation, file: Path) -> str:
    if str(file) == "-":
        return invocation.terminal.stdin.read()  # as it is: lines are counted
    try:
        return file.read_text()
    except UnicodeDecodeError as error:
        raise Failure("request.usage", f"{file} is no text in UTF-8") from error
    except OSError as error:
        raise Failure("request.usage", f"{file} cannot be read: {error.strerror}") from error
