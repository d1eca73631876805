"""`slice doctor`: a call of `cli.cluster.doctor`, printed."""

from collections.abc import Mapping
from dataclasses import asdict

import typer

from cli import exits
from cli.cluster import doctor as cluster_doctor
from cli.cluster.finding import Finding
from cli.connection import local_data_dir
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.tables import Column, View

_MARKS: Mapping[bool | None, str] = {True: "ok", False: "failed", None: "note"}

_FINDINGS = View(
    name=lambda item: str(item["name"]),
    empty="nothing was looked at",
    columns=(
        Column(title="STATE", cell=lambda item, _: _MARKS[item["is_ok"]], is_state=True),
        Column(title="WHAT", cell=lambda item, _: str(item["name"])),
        Column(title="FOUND", cell=lambda item, _: str(item["detail"]), is_prose=True),
        Column(
            title="NEXT STEP",
            cell=lambda item, _: "" if item["is_ok"] else str(item["hint"]),
            is_prose=True,
            is_optional=True,
        ),
    ),
)


def doctor(ctx: typer.Context, output: OutputOption = Output.TABLE) -> int:
    """Say what is wrong with this machine's cluster, and what cures it; exit 1 when something is."""
    invocation: Invocation = ctx.obj
    findings = cluster_doctor.run(local_data_dir(invocation))
    Printer(invocation, output).listing({"items": [asdict(finding) for finding in findings]}, _FINDINGS)
    wrong = faults(findings)
    if wrong and output in {Output.TABLE, Output.WIDE}:
        invocation.terminal.note(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}")
    return exits.FAILED if wrong else exits.OK


def faults(findings: list[Finding]) -> list[str]:
    """Return the names of the findings that are wrong."""
    return [finding.name for finding in findings if finding.is_ok is False]
