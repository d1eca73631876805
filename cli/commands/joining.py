"""`slice node join`: flags in, a call of `cli.joined.join` out."""

from pathlib import Path
from typing import Annotated

import typer

from cli.connection import local_data_dir
from cli.joined import join as joined_join
from cli.joined.join import JoinRequest
from cli.options import Output

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
