"""`slice up`: flags in, a call of `cli.cluster.up` out."""

from pathlib import Path
from typing import Annotated

import typer

from cli.cluster import up as cluster_up
from cli.cluster.up import UpRequest
from cli.connection import local_data_dir
from cli.joined import up as joined_up
from cli.options import Output
from core.infra import joined

UpOutput = Annotated[Output, typer.Option("--output", "-o", help="json prints the addresses and the key as an object.")]


def up(
    ctx: typer.Context,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port of the front door (7080).")] = None,
    controller_port: Annotated[
        int | None, typer.Option("--controller-port", min=1, max=65535, help="Port of the admin API (7081).")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on (127.0.0.1).")] = None,
    node_host: Annotated[
        str | None, typer.Option("--node-host", help="Address of this machine that other machines join at (none).")
    ] = None,
    node_port: Annotated[
        int | None, typer.Option("--node-port", min=1, max=65534, help="Port for joined nodes (7082); joins: one more.")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option("--database-url", help="PostgreSQL instead of the embedded one.")
    ] = None,
    devices: Annotated[str | None, typer.Option("--devices", help="auto, cpu, or sim:FILE (pretended GPUs).")] = None,
    starter_model: Annotated[
        str | None, typer.Option("--starter-model", help="Model to bring up first; '' for none (smollm2).")
    ] = None,
    wheel_dir: Annotated[Path | None, typer.Option("--wheel-dir", help="Directory of wheels to install from.")] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay; for systemd and containers.")] = False,
    output: UpOutput = Output.TABLE,
) -> int:
    """Start the cluster of this machine and return when it is ready.

    `slice --data-dir DIR up` starts another cluster beside it. Flags are remembered for the next `slice up`. On a
    machine that joined a cluster it starts that machine's node agent.
    """
    flags: dict[str, object] = {
        "port": port,
        "controller_port": controller_port,
        "host": host,
        "node_host": node_host,
        "node_port": node_port,
        "database_url": database_url,
        "devices": devices,
        "starter_model": starter_model,
        "wheel_dir": None if wheel_dir is None else str(wheel_dir.resolve()),
    }
    data_dir = local_data_dir(ctx.obj)
    words = "json" if output is Output.JSON else "text"
    if joined.load(data_dir) is not None:
        return joined_up.run(data_dir, flags, words, is_foreground=foreground)
    return cluster_up.run(
        UpRequest(
            data_dir=data_dir,
            flags=flags,
            is_foreground=foreground,
            output=words,
        )
    )
