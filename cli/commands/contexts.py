"""`slice context add|use|list|rm`."""

from pathlib import Path
from typing import Annotated

import typer

from cli import contexts
from cli.connection import chosen_context, contexts_file, data_dir_of
from cli.contexts import LOCAL, Context
from cli.invocation import Invocation
from cli.options import Output, OutputOption
from cli.printing import Printer
from cli.tables import Column, View
from core.errors import Failure

_CONTEXTS = View(
    name=lambda item: str(item["name"]),
    empty="no contexts",
    columns=(
        Column(title="IN USE", cell=lambda item, _: "*" if item["is_current"] else ""),
        Column(title="NAME", cell=lambda item, _: str(item["name"])),
        Column(title="URL", cell=lambda item, _: str(item["url"])),
        Column(title="TOKEN FILE", cell=lambda item, _: str(item["token_file"])),
        Column(title="OPENAI URL", cell=lambda item, _: str(item["openai_url"]), is_wide=True),
        Column(title="KEY FILE", cell=lambda item, _: str(item["key_file"]), is_wide=True),
    ),
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the context.")]


def add(
    ctx: typer.Context,
    name: NameArgument,
    url: Annotated[str, typer.Option("--url", help="Its admin API, e.g. https://box:7081.")],
    token_file: Annotated[Path, typer.Option("--token-file", help="File with its operator token.")],
    openai_url: Annotated[str, typer.Option("--openai-url", help="Its front door, if not where it says.")] = "",
    key_file: Annotated[Path | None, typer.Option("--key-file", help="File with an API key, for `slice run`.")] = None,
) -> None:
    """Remember a remote cluster; an existing name is replaced. Secrets stay in their files."""
    invocation: Invocation = ctx.obj
    for file in filter(None, (token_file, key_file)):
        if not file.expanduser().is_file():
            raise Failure(
                "auth.missing", f"there is no file {file}", hint="copy the secret there first, with mode 0600"
            )
    context = Context(
        url=url.rstrip("/"),
        token_file=str(token_file.expanduser().resolve()),
        openai_url=openai_url.rstrip("/"),
        key_file=str(key_file.expanduser().resolve()) if key_file else "",
    )
    contexts.save(contexts_file(), contexts.load(contexts_file()).with_added(name, context))
    invocation.terminal.note(f"remembered {name}; `slice context use {name}` makes it the one that commands talk to")


def use(ctx: typer.Context, name: NameArgument) -> None:
    """Choose the cluster that commands talk to; `local` is this machine's."""
    invocation: Invocation = ctx.obj
    contexts.save(contexts_file(), contexts.load(contexts_file()).with_current(name))
    invocation.terminal.note(f"commands talk to {name} now")


def list_(ctx: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the remembered clusters and mark the one in use."""
    invocation: Invocation = ctx.obj
    known = contexts.load(contexts_file())
    current = chosen_context(invocation, known.current)
    local = Context(url=str(data_dir_of(invocation.data_dir, invocation.environment)), token_file="")
    items = [
        {
            "name": name,
            "is_current": name == current,
            "url": item.url,
            "token_file": item.token_file,
            "openai_url": item.openai_url,
            "key_file": item.key_file,
        }
        for name, item in {LOCAL: local, **known.known}.items()
    ]
    Printer(invocation, output).listing({"items": items}, _CONTEXTS)


def rm(ctx: typer.Context, name: NameArgument) -> None:
    """Forget a remote cluster; its files stay."""
    invocation: Invocation = ctx.obj
    contexts.save(contexts_file(), contexts.load(contexts_file()).without(name))
    invocation.terminal.note(f"forgot {name}")
