"""`slice down`: a call of `cli.cluster.down`."""

import typer

from cli.cluster import down as cluster_down
from cli.connection import local_data_dir


def down(ctx: typer.Context) -> int:
    """Stop the cluster of this machine; its data stays."""
    return cluster_down.run(local_data_dir(ctx.obj))
