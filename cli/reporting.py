"""Shows how a command ended badly: on standard error, as text or as JSON, and as an exit code."""

from cli import exits
from cli.options import Output
from cli.terminal import Terminal
from core.errors import Failure


def report(failure: Failure, terminal: Terminal, output: Output) -> int:
    """Show `failure` on standard error, as JSON when `output` is, and return its exit code."""
    shown = exits.rendered_json(failure) if output is Output.JSON else exits.rendered(failure)
    terminal.note(shown)
    return exits.exit_code(failure)
