"""`slice key create|list|revoke`."""

from typing import Annotated

import typer

from cli import reach
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.views import KEYS
from core.units import seconds_from_text


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for, e.g. `ci`.")],
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="DURATION", help="When it ends by itself, e.g. 30d or 12h.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make an API key; it is shown this once.

    The key alone goes to standard output, so KEY=$(slice key create ci) works; with -o name as well.
    """
    invocation: Invocation = ctx.obj
    expires_in_s = None if expires is None else int(seconds_from_text(expires))
    made = reach.admin(invocation).post("keys", body={"name": name, "expires_in_s": expires_in_s})
    if output in {Output.TABLE, Output.WIDE, Output.NAME}:  # a name alone would lose the one sight of the key
        invocation.terminal.data(str(made["key"]))
        invocation.terminal.note(f"key {name} ({made.get('kid')}) was made; it is not shown again")
    else:
        Printer(invocation, output).done(made, KEYS, "")


def list_(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the API keys, never their secrets."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("keys"), KEYS)


def revoke(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Name or kid of the key.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Revoke an API key; the doors know within 2 s."""
    invocation: Invocation = ctx.obj
    gone = reach.admin(invocation).delete("keys", key)
    Printer(invocation, output).done(gone, KEYS, f"revoked {key}")
