"""The `slice` command: parses, runs one command, and turns every ending into an exit code.

Called by the installed script. A `Failure` becomes `error[code]: ...` on standard error; anything else that escapes is
a fault of ours: it is written to a log file and shown as one line, its traceback only under SLICE_DEBUG=1.
"""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import typer

from cli import exits, tree
from cli.invocation import Invocation
from cli.options import Output, wanted_output
from cli.reporting import report
from cli.terminal import ReaderGone, of_process
from core.errors import Failure
from core.infra.clock import SystemClock
from core.infra.cluster import make_private_dir
from core.infra.settings import process_environment

_HOISTED = ("--data-dir", "--context")


def main() -> int:
    """Run `slice` on this process's arguments and return its exit code (see `cli.exits`)."""
    arguments = hoisted(sys.argv[1:])
    environment = process_environment()
    terminal = of_process(environment)
    invocation = Invocation(terminal=terminal, environment=environment, clock=SystemClock())
    code = _ended(lambda: _run(arguments, invocation), invocation, wanted_output(arguments))
    return code if _flushed() else exits.BROKEN_PIPE


def hoisted(arguments: list[str]) -> list[str]:
    """Return the arguments with `--data-dir` and `--context` moved before the command; words after `--` stay."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in _HOISTED:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith(tuple(f"{name}=" for name in _HOISTED)):
            front.append(word)
        else:
            rest.append(word)
    return front + rest


def _run(arguments: list[str], invocation: Invocation) -> int:
    if "_SLICE_COMPLETE" in invocation.environment:
        # A shell asks for completions. typer learns its shells only through its own --install-completion option.
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    result = tree.root().main(arguments, prog_name="slice", standalone_mode=False, obj=invocation)
    return result if isinstance(result, int) else exits.OK


def _ended(run: Callable[[], int], invocation: Invocation, output: Output) -> int:
    terminal = invocation.terminal
    try:
        return run()
    except Failure as failure:
        return report(failure, terminal, output)
    except typer.TyperException as error:  # every fault of the command line
        return report(_usage(error), terminal, output)
    except (KeyboardInterrupt, typer.Abort):
        terminal.note("interrupted")
        return exits.INTERRUPTED
    except ReaderGone:
        return exits.BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the outermost frame: nobody above could show it better
        return report(_unexpected(error, invocation), terminal, output)


def _usage(error: typer.TyperException) -> Failure:
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "slice"
    message = " ".join(error.format_message().split())
    return Failure("request.usage", message, hint=f"`{command} --help` shows how it is called")


def _unexpected(error: Exception, invocation: Invocation) -> Failure:
    text = "".join(traceback.format_exception(error))
    if invocation.environment.get("SLICE_DEBUG") == "1":
        invocation.terminal.note(text)
    at = invocation.clock.now().isoformat(timespec="seconds")
    file = _logged(f"{at} slice {' '.join(sys.argv[1:2])}\n{text}\n")
    return Failure(
        "internal.unexpected",
        f"slice met a fault of its own ({type(error).__name__}); the details are in {file}",
        hint="please report it with that file; SLICE_DEBUG=1 shows the details here",
    )


def _logged(text: str) -> Path:
    """Append `text` to the fault log of this user, or to a fresh temporary file when that cannot be written."""
    file = platformdirs.user_log_path("slice") / "faults.log"
    try:
        make_private_dir(file.parent)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as stream:
            stream.write(text)
    except (OSError, Failure):
        handle, name = tempfile.mkstemp(prefix="slice-fault-", suffix=".log")
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        return Path(name)
    return file


def _flushed() -> bool:
    """Flush the streams while a broken pipe can still be handled; return whether standard output took it all."""
    # A second Ctrl-C while we flush must not end in a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return False
    return True
