"""Small process trees for the shim's tests: programs as text, and waiting for conditions with a deadline."""

import asyncio
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from core.infra import processes
from node_agent.shim_client import ShimSpec

T = TypeVar("T")

IGNORES_SIGTERM = """
    import signal, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(sys.argv[1] + "/up", "w").close()
    while True:
        signal.pause()
"""

QUIET = """
    import signal, sys
    open(sys.argv[1] + "/up", "w").close()
    while True:
        signal.pause()
"""

# A leader with a child in a new session that renames itself and has a child of its own, again in a new session: what
# vLLM's and Ray's workers look like to whoever wants to find them.
HIDDEN_FAMILY = """
    import os, signal, sys
    from setproctitle import setproctitle
    def note(name):
        with open(os.path.join(sys.argv[1], name), "w") as stream:
            stream.write(str(os.getpid()))
    note("up")
    for name in ("child", "grandchild"):
        if os.fork():
            break
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        setproctitle("VLLM::EngineCor")
        note(name)
    while True:
        signal.pause()
"""


def spec_of(tmp_path: Path, program: str, *arguments: str, incarnation: int = 1, **more: object) -> ShimSpec:
    """Return the spec of a shim that runs `program`, whose first argument is the directory for its notes."""
    notes = tmp_path / "notes"
    notes.mkdir(exist_ok=True)
    code = tmp_path / "engine.py"
    code.write_text(textwrap.dedent(program))
    return ShimSpec(
        shim_id="rep_test",
        argv=(sys.executable, str(code), str(notes), *arguments),
        env={"PATH": os.environ["PATH"], "ONLY": "this"},
        cwd=tmp_path,
        log_path=tmp_path / "engine.log",
        record_dir=tmp_path / "record",
        socket_path=tmp_path / "s" / "rep_test.sock",
        incarnation=incarnation,
        **more,
    )


async def until(condition: Callable[[], T], deadline_s: float = 10.0) -> T:
    """Return the condition's first true value.

    Raises:
        TimeoutError: it stayed false.
    """
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} stayed false")
        await asyncio.sleep(0.02)
    return value


def pid_in(file: Path) -> int:
    """Return the pid that a test program noted in `file`, or 0 while it has not."""
    return int(file.read_text() or "0") if file.exists() else 0


def is_gone(pid: int) -> bool:
    """Return whether no living process has this pid."""
    return processes.mark(pid) is None
