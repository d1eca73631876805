"""`slice logs`."""

from typing import Annotated

import typer

from cli import reach
from cli.client import AdminClient, Json
from cli.connection import local_node
from cli.invocation import Invocation
from cli.joined import logs as joined_logs
from cli.lookup import replicas_of
from cli.terminal import Terminal


def logs(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Deployment, model, alias or replica id.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="How many last lines to begin with.")] = 200,
) -> None:
    """Print the log of an engine; of several replicas one after another, or with -f the newest.

    On a machine that joined a cluster: the log of its node_agent, its supervisor, or of a replica that runs there.
    """
    invocation: Invocation = ctx.obj
    terminal = invocation.terminal
    node = local_node(invocation)
    if node is not None:
        joined_logs.show(node, target, terminal, tail=tail, is_followed=follow)
        return
    client = reach.admin(invocation)
    found = replicas_of(client, target)
    if follow and len(found) > 1:
        terminal.note(f"following {_place(found[0])}, the newest of {len(found)} replicas; `slice ps` lists the others")
        found = found[:1]
    for replica in found:
        if len(found) > 1:
            terminal.note(f"== {_place(replica)} ==")
        _print(client, terminal, replica, tail=tail, is_followed=follow)


def _place(replica: Json) -> str:
    return f"{replica.get('id')} on {replica.get('node')}"


def _print(client: AdminClient, terminal: Terminal, replica: Json, *, tail: int, is_followed: bool) -> None:
    last = "\n"
    for text in client.text(
        "replicas", str(replica["id"]), "logs", is_followed=is_followed, tail=tail, follow=is_followed
    ):
        if text:
            terminal.piece(text)
            last = text
    if not last.endswith("\n"):
        terminal.piece("\n")
