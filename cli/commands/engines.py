"""`slice engine list|show|install|upgrade|rollback|remove|adopt`."""

from typing import Annotated, Any

import typer

from cli import installing, reach
from cli.client import AdminClient, Json
from cli.engine_views import ENGINES, INSTALLS, absent_nodes, engine_facts, rows
from cli.invocation import Invocation
from cli.options import DurationOption, Output, OutputOption, seconds
from cli.printing import Printer
from core.errors import Failure

EngineArgument = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Engine, and which version of it.")]
NodeOption = Annotated[str | None, typer.Option("--node", metavar="NODE", help="On this node alone; else on all.")]
SourceOption = Annotated[
    str | None,
    typer.Option("--from", metavar="SOURCE", help="Of a program: file:/PATH on the node, or https://...#file=SHA256."),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Return when the nodes have done it.")]
UnlistedOption = Annotated[
    bool, typer.Option("--allow-unlisted", help="Take a version that this release does not know, without digests.")
]
RiskOption = Annotated[bool, typer.Option("--accept-risk", help="Take a version with a known vulnerability.")]
DeploymentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--deployments",
        metavar="all|none|NAME",
        help="Which to move: all that run the old default (so without this), none, or names; repeatable.",
    ),
]


def list_(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the engines, their versions, and where they are."""
    invocation: Invocation = ctx.obj
    answer = reach.admin(invocation).get("engines")
    printer = Printer(invocation, output)
    if output in {Output.TABLE, Output.WIDE}:
        printer.listing({"items": [row for engine in answer.get("items") or [] for row in rows(engine)]}, INSTALLS)
    else:
        printer.listing(answer, ENGINES)


def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Engine; `slice engine list` names them.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what an engine can, and where which of its versions is."""
    invocation: Invocation = ctx.obj
    found = reach.admin(invocation).get("engines", name)
    printer = Printer(invocation, output)
    printer.thing(found, ENGINES, engine_facts(found, invocation.clock.now(), is_wide=printer.is_wide))


def install(
    ctx: typer.Context,
    engine: EngineArgument,
    node: NodeOption = None,
    source: SourceOption = None,
    allow_unlisted: UnlistedOption = False,
    accept_risk: RiskOption = False,
    wait: WaitOption = False,
    timeout: DurationOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring a version of an engine onto the nodes, beside those that are there."""
    invocation: Invocation = ctx.obj
    client, patience = reach.admin(invocation), seconds(timeout)
    name, version = parted(engine)
    body = _wish(version, node, source, allow_unlisted=allow_unlisted, accept_risk=accept_risk)
    found = client.post("engines", name, "install", body=body)
    chosen = str(found.get("version"))
    _warn(invocation, found, chosen)
    sentence = f"{name} {chosen} is on its way; `slice engine show {name}` shows how far it is"
    if wait:
        found = installing.installed(
            client, invocation.terminal, invocation.clock, name=name, version=chosen, node=node, timeout_s=patience
        )
        sentence = f"{name} {chosen} is installed"
    Printer(invocation, output).done(found, ENGINES, sentence)


def upgrade(
    ctx: typer.Context,
    engine: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="Engine and the version to run from now on.")],
    deployments: DeploymentsOption = None,
    node: NodeOption = None,
    source: SourceOption = None,
    allow_unlisted: UnlistedOption = False,
    accept_risk: RiskOption = False,
    wait: WaitOption = False,
    timeout: DurationOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a version the default, install it where the engine is, and move deployments to it."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    name, version = parted(engine)
    if version is None:
        raise Failure("request.usage", "which version?", hint=f"`slice engine upgrade {name}@VERSION`")
    wish = _wish(version, node, source, allow_unlisted=allow_unlisted, accept_risk=accept_risk)
    found = client.post("engines", name, "upgrade", body={**wish, "deployments": moving(deployments)})
    _warn(invocation, found, version)
    _followed(invocation, client, found, name=name, wait=wait, timeout=timeout, output=output)


def rollback(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Engine.")],
    deployments: DeploymentsOption = None,
    accept_risk: RiskOption = False,
    wait: WaitOption = False,
    timeout: DurationOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Return to the default before the last upgrade, and move deployments back to it."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    body = {"deployments": moving(deployments), "accept_risk": accept_risk}
    found = client.post("engines", name, "rollback", body=body)
    _followed(invocation, client, found, name=name, wait=wait, timeout=timeout, output=output)


def remove(
    ctx: typer.Context,
    engine: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="Engine and the version to remove.")],
    node: NodeOption = None,
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Even if it is the default, or a deployment without replicas names it."),
    ] = False,
    wait: WaitOption = False,
    timeout: DurationOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove a version of an engine from the nodes; one that a deployment runs stays."""
    invocation: Invocation = ctx.obj
    client, patience = reach.admin(invocation), seconds(timeout)
    name, version = parted(engine)
    if version is None:
        raise Failure("request.usage", "which version?", hint=f"`slice engine remove {name}@VERSION`")
    found = client.post("engines", name, "remove", body={"version": version, "node": node, "force": force})
    sentence = f"{name} {version} goes"
    if wait:
        found = installing.removed(
            client, invocation.terminal, invocation.clock, name=name, version=version, node=node, timeout_s=patience
        )
        sentence = f"{name} {version} is removed"
    Printer(invocation, output).done(found, ENGINES, sentence)


def adopt(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Engine that somebody runs there, e.g. ollama.")],
    node: Annotated[str | None, typer.Option("--node", metavar="NODE", help="The node that it runs on.")] = None,
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="Where it listens on that node: a loopback address.")
    ] = "http://127.0.0.1:11434",
    end: Annotated[bool, typer.Option("--end", help="End the adoption; the engine itself runs on.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List and serve the models of an engine that runs on a node already; its store is only read."""
    invocation: Invocation = ctx.obj
    client = reach.admin(invocation)
    if end:
        found = client.delete("engines", name, "adopt", node=node)
        sentence = f"{name} is not adopted any more; its models stay listed"
    else:
        found = client.post("engines", name, "adopt", body={"node": node, "url": url})
        sentence = f"{name} on {found.get('node')} is adopted; `slice list` shows its models in a moment"
    Printer(invocation, output).done(found, ENGINES, sentence)


def parted(text: str) -> tuple[str, str | None]:
    """Return engine and version of `NAME[@VERSION]`.

    Raises:
        Failure: `request.usage` when one side of the `@` is empty.
    """
    name, mark, version = text.partition("@")
    if not name or (mark and not version):
        raise Failure("request.usage", f"{text!r} is no engine", hint="write NAME or NAME@VERSION")
    return name, version or None


def moving(words: list[str] | None) -> str | list[str]:
    """Return which deployments to move, as the admin API takes it.

    Raises:
        Failure: `request.usage` when `all` or `none` stands beside names.
    """
    if not words:
        return "all"
    if len(words) == 1 and words[0] in {"all", "none"}:
        return words[0]
    if {"all", "none"} & set(words):
        raise Failure("request.usage", "all and none stand alone", hint="--deployments one --deployments two")
    return words


def _wish(
    version: str | None, node: str | None, source: str | None, *, allow_unlisted: bool, accept_risk: bool
) -> dict[str, Any]:
    return {
        "version": version,
        "node": node,
        "source": source,
        "allow_unlisted": allow_unlisted,
        "accept_risk": accept_risk,
    }


def _warn(invocation: Invocation, engine: Json, version: str) -> None:
    terminal = invocation.terminal
    if not engine.get("is_program") and version not in (engine.get("versions") or []):
        terminal.note(f"{engine.get('name')} {version} is installed without pinned digests: this release knows no lock")
    for warning in sorted({str(row["warning"]) for row in rows(engine) if row.get("warning")}):
        terminal.note(f"warning: {warning}")
    if away := absent_nodes(engine, version):
        terminal.note(f"not heard of now, told later: {', '.join(away)}")


def _followed(
    invocation: Invocation,
    client: AdminClient,
    found: Json,
    *,
    name: str,
    wait: bool,
    timeout: str | None,
    output: Output,
) -> None:
    """Say what an upgrade or a rollback did; with `wait` until the moved deployments serve, one after another."""
    patience = seconds(timeout)
    version = str(found.get("version"))
    moved = [str(word) for word in found.get("moved") or []]
    if wait:
        installing.installed(
            client, invocation.terminal, invocation.clock, name=name, version=version, node=None, timeout_s=patience
        )
        installing.moved(
            client, invocation.terminal, invocation.clock, names=moved, version=version, timeout_s=patience
        )
    what = f"moved {', '.join(moved)}" if moved else "no deployment was moved"
    Printer(invocation, output).done(found, ENGINES, f"new deployments of {name} get {version}; {what}")
