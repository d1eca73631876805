"""From a `Failure` to what a shell sees: its exit code and the lines on standard error.

Pure: a failure comes in, numbers and text go out. Called by `cli.main` and by commands that go on after a failure.
"""

import json
from collections.abc import Mapping

from core.errors import Failure, Kind

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
DENIED = 4
CONFLICT = 5
UNAVAILABLE = 6
INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of our output went away, e.g. `slice list | head -1`

EXIT_CODES: Mapping[Kind, int] = {
    Kind.FAILED: FAILED,
    Kind.USAGE: USAGE,
    Kind.TOO_LARGE: USAGE,
    Kind.NOT_FOUND: NOT_FOUND,
    Kind.DENIED: DENIED,
    Kind.CONFLICT: CONFLICT,
    Kind.UNAVAILABLE: UNAVAILABLE,
}
"""The one table from the class of a failure to the exit code of `slice`."""


def exit_code(failure: Failure) -> int:
    """Return the exit code of a command that ended with `failure`."""
    return EXIT_CODES[failure.kind]


def rendered(failure: Failure) -> str:
    """Return the lines `error[code]: message` and, where there is one, `hint: ...`, without a last newline."""
    first = f"error[{failure.code}]: {failure.message}"
    return f"{first}\nhint: {failure.hint}" if failure.hint else first


def rendered_json(failure: Failure) -> str:
    """Return the admin API's error object for `failure` as one line of JSON."""
    return json.dumps({"error": failure.as_json()}, ensure_ascii=False)
