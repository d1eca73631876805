"""`slice up`, `slice down` and `slice doctor`: flags in, a call of `cli.cluster` out."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import exits
from cli.cluster import doctor as cluster_doctor
from cli.cluster import down as cluster_down
from cli.cluster import up as cluster_up
from cli.cluster.doctor import Finding
from cli.cluster.up import UpRequest
from cli.connection import data_dir_of
from cli.contexts import LOCAL
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.tables import Column, View
from core.errors import Failure

_MARKS: Mapping[bool | None, str] = {True: "ok", False: "failed", None: "note"}

_FINDINGS = View(
    name=lambda item: str(item["name"]),
    empty="nothing was looked at",
    columns=(
        Column(title="STATE", cell=lambda item, _: _MARKS[item["is_ok"]], is_state=True),
        Column(title="WHAT", cell=lambda item, _: str(item["name"])),
        Column(title="FOUND", cell=lambda item, _: str(item["detail"]), is_prose=True),
        Column(title="NEXT STEP", cell=lambda item, _: str(item["hint"]), is_prose=True, is_optional=True),
    ),
)

UpOutput = Annotated[Output, typer.Option("--output", "-o", help="json prints the addresses and the key as an object.")]


def up(
    ctx: typer.Context,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port of the front door (7080).")] = None,
    controller_port: Annotated[
        int | None, typer.Option("--controller-port", min=1, max=65535, help="Port of the admin API (7081).")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on (127.0.0.1).")] = None,
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

    `slice --data-dir DIR up` starts another cluster beside it. Flags are remembered for the next `slice up`.
    """
    flags: dict[str, object] = {
        "port": port,
        "controller_port": controller_port,
        "host": host,
        "database_url": database_url,
        "devices": devices,
        "starter_model": starter_model,
        "wheel_dir": None if wheel_dir is None else str(wheel_dir.resolve()),
    }
    return cluster_up.run(
        UpRequest(
            data_dir=_local_data_dir(ctx.obj),
            flags=flags,
            is_foreground=foreground,
            output="json" if output is Output.JSON else "text",
        )
    )


def down(ctx: typer.Context) -> int:
    """Stop the cluster of this machine; its data stays."""
    return cluster_down.run(_local_data_dir(ctx.obj))


def doctor(ctx: typer.Context, output: OutputOption = Output.TABLE) -> int:
    """Say what is wrong with this machine's cluster, and what cures it; exit 1 when something is."""
    invocation: Invocation = ctx.obj
    findings = cluster_doctor.run(_local_data_dir(invocation))
    Printer(invocation, output).listing({"items": [asdict(finding) for finding in findings]}, _FINDINGS)
    wrong = faults(findings)
    if wrong and output in {Output.TABLE, Output.WIDE}:
        invocation.terminal.note(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}")
    return exits.FAILED if wrong else exits.OK


def faults(findings: list[Finding]) -> list[str]:
    """Return the names of the findings that are wrong."""
    return [finding.name for finding in findings if finding.is_ok is False]


def _local_data_dir(obj: Any) -> Path:
    invocation: Invocation = obj
    if invocation.context not in {None, LOCAL}:
        raise Failure(
            "request.usage",
            f"context {invocation.context!r} is another machine's cluster",
            hint="run this on that machine, or leave --context away",
        )
    return data_dir_of(invocation.data_dir, invocation.environment)
