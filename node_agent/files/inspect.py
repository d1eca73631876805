"""Reads one GGUF header in a process of its own: `python -m node_agent.files.inspect PATH`.

Comes in: a path. Goes out, on standard output: `{"facts_json", "chat_template_sha256"}`, or with exit code 1
`{"code", "message", "hint"}`. Called by `node_agent.files.header`, which kills it after a deadline: the file is a
stranger's.
"""

import json
import resource
import sys
from pathlib import Path

from core.errors import Failure
from core.formats import gguf

_ADDRESS_SPACE_BYTES = 1024**3


def main(arguments: list[str]) -> int:
    """Print the header's facts; return 0, or 1 after printing a failure."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    path = Path(arguments[0])
    try:
        with path.open("rb") as stream:
            header = gguf.read_header(stream, path.stat().st_size)
    except Failure as failure:
        print(json.dumps({"code": failure.code, "message": failure.message, "hint": failure.hint}))
        return 1
    print(json.dumps({"facts_json": header.facts_json(), "chat_template_sha256": header.chat_template_sha256}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
