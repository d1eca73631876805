"""`slice node cordon|uncordon|drain|forget` and `slice move`."""

from typing import Annotated

import typer

from cli import departing, exits, reach
from cli.client import AdminClient, Json
from cli.departing import Waiting
from cli.invocation import Invocation
from cli.lookup import replicas_of
from cli.options import DurationOption, Output, OutputOption, seconds
from cli.printing import Printer
from cli.views import NODES, REPLICAS
from core.errors import Failure

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="Node name.")]


def cordon(ctx: typer.Context, name: NodeArgument, output: OutputOption = Output.TABLE) -> None:
    """Let a node get no more replicas; those it has stay."""
    invocation: Invocation = ctx.obj
    node = reach.admin(invocation).post("nodes", name, "cordon", body={})
    Printer(invocation, output).done(node, NODES, f"{name} gets no more replicas; `slice node uncordon {name}` ends it")


def uncordon(ctx: typer.Context, name: NodeArgument, output: OutputOption = Output.TABLE) -> None:
    """Let a node get replicas again; ends a drain, and what has not left stays."""
    invocation: Invocation = ctx.obj
    node = reach.admin(invocation).post("nodes", name, "uncordon", body={})
    Printer(invocation, output).done(node, NODES, f"{name} gets replicas again")


def drain(
    ctx: typer.Context,
    name: NodeArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it holds no replica.")] = False,
    timeout: DurationOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also stop what nothing can take the place of, the last copy too.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> int:
    """Empty a node: each replica gets a successor elsewhere and serves until that one does."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    waiting = _waiting(invocation, client, timeout)
    node = client.post("nodes", name, "drain", body={"force": force})
    sentence = f"{name} is drained; `slice node show {name}` shows how far it is"
    if wait:
        ended = departing.drained(waiting, name)
        if isinstance(ended, departing.StillThere):
            return departing.told(ended, invocation.terminal, output)
        node, sentence = ended.last, f"{name} is empty and cordoned; `slice node uncordon {name}` takes it back"
    Printer(invocation, output).done(node, NODES, sentence)
    return exits.OK


def forget(
    ctx: typer.Context,
    name: NodeArgument,
    force: Annotated[bool, typer.Option("--force", help="Though it is neither lost nor offline.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Delete a node that will not come back; its replicas are placed elsewhere and its certificates are revoked."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    node = client.get("nodes", name)
    client.delete("nodes", name, force=force)
    sentence = f"{name} is forgotten; it can join again with a new line of `slice node token`"
    Printer(invocation, output).done(node, NODES, sentence)


def move(
    ctx: typer.Context,
    replica: Annotated[
        str, typer.Argument(metavar="REPLICA", help="Replica id or its beginning, or a deployment that has but one.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="NODE", help="Node that it shall move to.")] = "",
    cancel: Annotated[bool, typer.Option("--cancel", help="End the move: it stays where it is.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has left its node.")] = False,
    timeout: DurationOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Move a replica to another node: the new one is ready before the old one goes."""
    if bool(to) == cancel:
        raise Failure("request.usage", "say either --to NODE or --cancel", hint="`slice node list` shows the nodes")
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    waiting = _waiting(invocation, client, timeout)
    replica_id = _one(client, replica)
    printer = Printer(invocation, output)
    if cancel:
        printer.done(client.delete("replicas", replica_id, "move"), REPLICAS, f"{replica_id} stays")
        return exits.OK
    found = client.post("replicas", replica_id, "move", body={"node": to})
    sentence = f"{replica_id} moves to {to}; `slice ps` shows how far it is"
    if wait:
        ended = departing.moved(waiting, replica_id)
        if isinstance(ended, departing.StillThere):
            return departing.told(ended, invocation.terminal, output)
        successor = str(ended.last.get("id") or "")
        found = client.get("replicas", successor) if successor else found
        sentence = f"{replica_id} has left" + (f"; {successor} on {found.get('node')} serves" if successor else "")
    printer.done(found, REPLICAS, sentence)
    return exits.OK


def _waiting(invocation: Invocation, client: AdminClient, timeout: str | None) -> Waiting:
    return Waiting(client=client, terminal=invocation.terminal, clock=invocation.clock, timeout_s=seconds(timeout))


def _one(client: AdminClient, target: str) -> str:
    """Return the id of the one replica that `target` means; those on their way out count only by their own id."""
    known: list[Json] = replicas_of(client, target)
    running = [item for item in known if item.get("desired") == "run"] or known
    if len(running) > 1:
        ids = ", ".join(str(item.get("id")) for item in running[:5])
        raise Failure("request.usage", f"{target!r} has {len(running)} replicas: {ids}", hint="give the id of one")
    return str(running[0]["id"])
