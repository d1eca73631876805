"""`slice completion`."""

from enum import StrEnum
from typing import Annotated

import typer

from cli.invocation import Invocation

_PROGRAM, _VARIABLE = "slice", "_SLICE_COMPLETE"


class Shell(StrEnum):
    """Shells that typer can complete for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


def completion(
    ctx: typer.Context,
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh, fish or powershell.")],
    install: Annotated[bool, typer.Option("--install", help="Write it where the shell finds it.")] = False,
) -> None:
    """Print the completion of your shell, or install it with --install.

    For this session alone: source <(slice completion bash)
    """
    # typer loads shell detection and templates with it: only this command needs them.
    from typer import completion as shells

    invocation: Invocation = ctx.obj
    if install:
        _, path = shells.install(  # type: ignore[attr-defined]  # typer documents it, yet does not mark it as exported
            shell=shell.value, prog_name=_PROGRAM, complete_var=_VARIABLE
        )
        invocation.terminal.note(f"installed in {path}; it works in every new {shell.value}")
    else:
        script = shells.get_completion_script(  # type: ignore[attr-defined]  # likewise
            prog_name=_PROGRAM, complete_var=_VARIABLE, shell=shell.value
        )
        invocation.terminal.data(script)
