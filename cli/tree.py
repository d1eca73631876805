"""Every command of `slice`: its name, its sentence and where its function lives.

Called by `cli.main`. Nothing named here is imported before it is run. Section "Models" holds Ollama's verbs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from cli.lazy import TYPER_SETTINGS, Entry, GroupEntry, Table, group_class
from cli.release import release

_MODELS, _CLUSTER, _TOOLS = "Models", "Cluster", "Tools"


def _verbs(module: str, section: str, **summaries: str) -> Mapping[str, Entry]:
    """Return one entry per verb; the function is called as the verb, `_name` after Python's own words."""
    return {
        name.rstrip("_"): Entry(target=f"cli.commands.{module}:{name}", summary=summary, section=section)
        for name, summary in summaries.items()
    }


_LIST = Entry(target="cli.commands.models:list_", summary="List the models of the cluster.", section=_MODELS)

TABLE: Table = {
    **_verbs("run", _MODELS, run="Chat with a model, or ask it one question; starts it when needed."),
    **_verbs("pull", _MODELS, pull="Bring a model into the cluster."),
    **_verbs(
        "models",
        _MODELS,
        list_="List the models of the cluster.",
        show="Show one model in full.",
        cp="Copy a model, or a deployment with its settings, under another name; no file is copied.",
        rm="Delete models, or single versions of them; what is in use only with --force.",
        catalog="List the models that can be pulled by name alone.",
    ),
    **_verbs("ps", _MODELS, ps="List what is running, and where."),
    **_verbs("logs", _MODELS, logs="Print the log of an engine."),
    **_verbs(
        "deployments",
        _MODELS,
        deploy="Deploy a model and leave it running.",
        deployments="List the deployments.",
        update="Change a deployment while it serves: new replicas first, then the old ones go.",
        undeploy="Delete a deployment; its model stays.",
        scale="Change how many replicas a deployment has.",
        stop="Stop models: their deployments get no replicas.",
    ),
    **_verbs(
        "switches",
        _MODELS,
        enable="Put deployments back into service with as many replicas as they had.",
        disable="Take deployments out of service.",
    ),
    **_verbs("leaving", _MODELS, move="Move a replica to another node; the new one is ready before the old one goes."),
    **_verbs("stages", _MODELS, stage="Move a version of a model to another stage, or list its moves."),
    "ls": Entry(target=_LIST.target, summary=_LIST.summary, section=_MODELS, is_alias=True),
    **_verbs("up", _CLUSTER, up="Start the cluster of this machine."),
    **_verbs("down", _CLUSTER, down="Stop the cluster of this machine."),
    **_verbs("doctor", _CLUSTER, doctor="Say what is wrong with this machine's cluster, and what cures it."),
    **_verbs(
        "status",
        _CLUSTER,
        status="Show the whole cluster in a few lines; on a machine that joined one, how that machine stands with it.",
    ),
    **_verbs("events", _CLUSTER, events="Print what happened."),
    **_verbs("usage", _CLUSTER, usage="Sum up what requests used: by key, project, model, deployment, node or day."),
    **_verbs(
        "blueprints",
        _CLUSTER,
        export="Print the models, aliases and deployments of the cluster as a file for `slice apply`.",
        diff="Print what `slice apply` would change, and change nothing.",
        apply="Make the cluster what a file says; pulls what is missing.",
    ),
    "node": GroupEntry(
        summary="List, cordon, drain and forget the machines, and let others join.",
        section=_CLUSTER,
        verbs={
            **_verbs(
                "nodes",
                "Commands",
                list_="List the nodes.",
                show="Show one node, its devices and its engines.",
                approve="Let a node work that joined with a token made with --manual.",
                unbrake="Place replicas anew though many nodes went silent at once.",
            ),
            **_verbs(
                "leaving",
                "Commands",
                cordon="Let a node get no more replicas; those it has stay.",
                uncordon="Let a node get replicas again; ends a drain.",
                drain="Empty a node: each replica gets a successor elsewhere and serves until that one does.",
                forget="Delete a node that will not come back.",
            ),
            **_verbs(
                "joining",
                "Commands",
                join="Make this machine a node of a cluster.",
                leave="Take this machine out of the cluster that it joined.",
            ),
            "token": GroupEntry(
                summary="Make and revoke the lines that let other machines join.",
                verbs=_verbs(
                    "tokens",
                    "Commands",
                    create="Print the line to paste on a machine that shall join; it works once.",
                    list_="List the join tokens of late, never their secrets.",
                    revoke="Revoke a join token.",
                ),
            ),
        },
    ),
    "engine": GroupEntry(
        summary="Install, upgrade, remove and adopt the engines of the nodes.",
        section=_CLUSTER,
        verbs=_verbs(
            "engines",
            "Commands",
            list_="List the engines, their versions, and where they are.",
            show="Show what an engine can, and where which of its versions is.",
            install="Bring a version of an engine onto the nodes, beside those that are there.",
            upgrade="Make a version the default, and move deployments to it.",
            rollback="Return to the default before the last upgrade.",
            remove="Remove a version of an engine from the nodes.",
            adopt="List and serve the models of an engine that runs on a node already.",
        ),
    ),
    "key": GroupEntry(
        summary="Make and revoke API keys of the front door.",
        section=_CLUSTER,
        verbs=_verbs(
            "keys",
            "Commands",
            create="Make an API key; it is shown this once.",
            list_="List the API keys, never their secrets.",
            revoke="Revoke an API key; the doors know within 2 s.",
        ),
    ),
    "secret": GroupEntry(
        summary="Keep the keys of engines that run elsewhere.",
        section=_CLUSTER,
        verbs=_verbs(
            "secrets",
            "Commands",
            set_="Store the key of an engine that runs elsewhere.",
            list_="List the secrets, never their values.",
            rm="Delete secrets that no deployment uses.",
        ),
    ),
    "model": GroupEntry(
        summary="Show, copy and move the files of models between the nodes' stores.",
        section=_MODELS,
        verbs=_verbs(
            "model",
            "Commands",
            where="List the nodes whose stores hold a model's files.",
            copy="Bring a model's files into a node's store, without a deployment.",
            move="Bring a model's files into another node's store, and off the one where they were.",
        ),
    ),
    "alias": GroupEntry(
        summary="Give models stable public names.",
        section=_CLUSTER,
        verbs=_verbs(
            "aliases",
            "Commands",
            set_="Let a name stand for a model, or for one version of it.",
            list_="List the aliases.",
            rm="Delete aliases.",
        ),
    ),
    "store": GroupEntry(
        summary="Show and clean the nodes' stores of model files.",
        section=_CLUSTER,
        verbs=_verbs(
            "store",
            "Commands",
            list_="List the files in the nodes' stores.",
            gc="Remove files that no model uses.",
        ),
    ),
    "config": GroupEntry(
        summary="Show and check the settings.",
        section=_TOOLS,
        verbs=_verbs(
            "config",
            "Commands",
            show="Print every setting, its value and where it came from.",
            check="Check a settings file and list every fault.",
        ),
    ),
    "context": GroupEntry(
        summary="Choose between clusters.",
        section=_TOOLS,
        verbs=_verbs(
            "contexts",
            "Commands",
            add="Remember a remote cluster.",
            use="Choose the cluster that commands talk to.",
            list_="List the remembered clusters.",
            rm="Forget a remote cluster.",
        ),
    ),
    **_verbs("version", _TOOLS, version="Print the release of this command and the cluster's."),
    **_verbs("completion", _TOOLS, completion="Print the completion of your shell, or install it."),
}

_HELP = "Slice: a cluster for AI models."
_EPILOG = (
    "--data-dir and --context may also stand after the command. Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, "
    "4 denied, 5 conflict, 6 unavailable, 130 interrupted."
)


def _version_asked(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"slice {release()}")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="Data directory of a cluster on this machine (SLICE_DATA_DIR)."),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option("--context", metavar="NAME", help="Cluster to talk to, see `slice context` (SLICE_CONTEXT)."),
    ] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the release and exit.", is_eager=True, callback=_version_asked),
    ] = False,
) -> None:
    ctx.obj = ctx.obj.at(data_dir=data_dir, context=context)


def root() -> Any:
    """Return the `slice` command; run it with `main(args, prog_name=, standalone_mode=False, obj=Invocation)`."""
    app = typer.Typer(cls=group_class(TABLE), help=_HELP, epilog=_EPILOG, **TYPER_SETTINGS)
    app.callback()(_root)
    return get_command(app)
