"""`slice node join|leave`: flags in, calls of `cli.joined` out."""

from pathlib import Path
from typing import Annotated

import typer

from cli import exits
from cli.connection import local_data_dir
from cli.invocation import Invocation
from cli.joined import join as joined_join
from cli.joined import leave as joined_leave
from cli.joined.join import JoinRequest
from cli.joined.leave import LeaveRequest
from cli.options import DurationOption, Output, OutputOption, seconds
from cli.printing import Printer
from cli.tables import View

_LEFT = View(name=lambda item: str(item["node_name"]), columns=(), empty="")
JoinOutput = Annotated[Output, typer.Option("--output", "-o", help="json prints what was joined as an object.")]


def join(
    ctx: typer.Context,
    line: Annotated[str, typer.Argument(metavar="LINE", help="What `slice node token create` printed.")],
    name: Annotated[str, typer.Option("--name", help="Name of the node; without it, the host's.")] = "",
    plane_host: Annotated[
        str,
        typer.Option(
            "--plane-host",
            metavar="IP",
            help="Address that other machines reach this one at; without it, the one that reaches the controller.",
        ),
    ] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Get a new certificate for a machine that joined; engines go on.")
    ] = False,
    no_start: Annotated[
        bool, typer.Option("--no-start", help="Only join; systemd, or `slice up`, starts the node agent.")
    ] = False,
    devices: Annotated[str | None, typer.Option("--devices", help="auto, cpu, or sim:FILE (pretended GPUs).")] = None,
    wheel_dir: Annotated[Path | None, typer.Option("--wheel-dir", help="Directory of wheels to install from.")] = None,
    output: JoinOutput = Output.TABLE,
) -> int:
    """Make this machine a node of a cluster.

    Starts its node agent and returns when the controller hears it. On a failure nothing is left; the next step stands
    in the message.
    """
    request = JoinRequest(
        data_dir=local_data_dir(ctx.obj),
        line=line,
        name=name,
        plane_host=plane_host,
        is_again=again,
        is_starting=not no_start,
        flags={"devices": devices, "wheel_dir": None if wheel_dir is None else str(wheel_dir.resolve())},
        output="json" if output is Output.JSON else "text",
    )
    return joined_join.run(request, ctx.obj.clock)


def leave(
    ctx: typer.Context,
    wait: Annotated[
        bool, typer.Option("--wait/--now", help="First wait until others serve what runs here; or cut it off now.")
    ] = True,
    timeout: DurationOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Though its controller does not answer; says what is left over there.")
    ] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Remove models, engines and logs too.")] = False,
    output: OutputOption = Output.TABLE,
) -> int:
    """Take this machine out of the cluster that it joined.

    Its work moves elsewhere, its engines end, the cluster forgets it and revokes its certificate. Killed at any step,
    the same command completes it. Model files stay.
    """
    invocation: Invocation = ctx.obj
    request = LeaveRequest(
        data_dir=local_data_dir(invocation),
        is_waiting=wait,
        timeout_s=seconds(timeout),
        is_forced=force,
        is_purging=purge,
    )
    gone = joined_leave.run(request, invocation)
    if gone is None:
        invocation.terminal.note("nothing to leave: this machine is no node of another machine's cluster")
        return exits.OK
    first, *more = joined_leave.sentences(gone)
    Printer(invocation, output).done(joined_leave.facts(gone), _LEFT, first)
    for sentence in more:
        invocation.terminal.note(sentence)
    return exits.OK
