"""`slice secret set|list|rm`."""

import getpass
import sys
from typing import Annotated

import typer

from cli import reach
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.views import SECRETS
from core.errors import Failure

_LONGEST = 8192

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the secret, e.g. `openai-key`.")]


def set_(ctx: typer.Context, name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Store the key of an engine that runs elsewhere; again replaces it.

    The value is read from standard input, or asked for without echo. It is never an argument: other users of this
    machine could read it there.
    """
    invocation: Invocation = ctx.obj
    made = reach.admin(invocation).put("secrets", name, body={"value": _value(name)})
    Printer(invocation, output).done(made, SECRETS, f"stored {name}; doors and nodes use it within seconds")


def list_(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the secrets, never their values."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("secrets"), SECRETS)


def rm(ctx: typer.Context, names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Secrets.")]) -> None:
    """Delete secrets that no deployment uses."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    for name in names:
        client.delete("secrets", name)
        invocation.terminal.note(f"deleted {name}")


def _value(name: str) -> str:
    text = getpass.getpass(f"value of {name}: ") if sys.stdin.isatty() else sys.stdin.read(_LONGEST + 2)
    value = text.removesuffix("\n").removesuffix("\r")
    if not value:
        raise Failure(
            "request.usage", "no value was given", hint=f"write it to standard input: slice secret set {name} < FILE"
        )
    return value
