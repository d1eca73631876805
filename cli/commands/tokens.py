"""`slice node token create|list|revoke`."""

from typing import Annotated

import typer

from cli import reach
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.views import JOIN_TOKENS
from core.errors import Failure
from core.units import seconds_from_text


def create(
    ctx: typer.Context,
    ttl: Annotated[str, typer.Option("--ttl", metavar="DURATION", help="How long it may be used.")] = "10m",
    labels: Annotated[
        list[str] | None, typer.Option("--labels", metavar="K=V", help="Label that the node gets; again for more.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The only name that may join with it.")] = None,
    manual: Annotated[bool, typer.Option("--manual", help="Who joins waits for `slice node approve`.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print the line to paste on a machine that shall join; it is shown this once and works once.

    The line alone goes to standard output. It pins this cluster's authority: whoever joins with it trusts no other.
    """
    invocation: Invocation = ctx.obj
    made = reach.admin(invocation).post(
        "nodes",
        "tokens",
        body={
            "ttl_s": int(seconds_from_text(ttl)),
            "labels": _labels(labels or []),
            "name": name,
            "is_approving": not manual,
        },
    )
    if output in {Output.TABLE, Output.WIDE, Output.NAME}:  # a name alone would lose the one sight of the line
        invocation.terminal.data(str(made["line"]))
        invocation.terminal.note(f"works once, until {made.get('expires_at')}; it is not shown again")
    else:
        Printer(invocation, output).done(made, JOIN_TOKENS, "")


def list_(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the join tokens of late, never their secrets."""
    invocation: Invocation = ctx.obj
    Printer(invocation, output).listing(reach.admin(invocation).get("nodes", "tokens"), JOIN_TOKENS)


def revoke(
    ctx: typer.Context,
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="Id of the token, as `slice node token list` shows.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Revoke a join token; who joined with it before stays."""
    invocation: Invocation = ctx.obj
    gone = reach.admin(invocation).delete("nodes", "tokens", token)
    Printer(invocation, output).done(gone, JOIN_TOKENS, f"token {token} is {gone.get('state')}")


def _labels(given: list[str]) -> dict[str, str]:
    """Return the labels of `k=v` and `k=v,k=v` texts.

    Raises:
        Failure: `request.usage` for one without `=`.
    """
    found: dict[str, str] = {}
    for text in (word for one in given for word in one.split(",") if word):
        key, mark, value = text.partition("=")
        if not mark or not key:
            raise Failure("request.usage", f"{text!r} is no label", hint="write --labels KEY=VALUE", param="--labels")
        found[key] = value
    return found
