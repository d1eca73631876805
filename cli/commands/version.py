"""`slice version`."""

import platform

import typer

from cli import reach
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.release import release
from cli.tables import Facts, View
from core.errors import Failure

_VERSION = View(name=lambda item: str(item["client"]), columns=(), empty="")


def version(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Print the release of this command and the cluster's, where it answers."""
    invocation: Invocation = ctx.obj
    cluster: str | None
    try:
        cluster = str(reach.admin(invocation).get("status").get("version"))
        seen = cluster
    except Failure as failure:
        cluster, seen = None, f"unknown: {failure.message}"
    found = {"client": release(), "cluster": cluster, "python": platform.python_version()}
    facts = Facts(facts=(("slice", release()), ("cluster", seen), ("Python", platform.python_version())))
    Printer(invocation, output).thing(found, _VERSION, facts)
