"""A supervisor on its own: started detached from whoever asked for it, and followed by its journal.

Used by `slice up` on a controller's machine and on one that joined. A second follower may come at any time.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from cli.cluster.following import show_for
from cli.cluster.journal import JournalReader, Mark
from cli.cluster.lock import SupervisorLock
from core.errors import CODES, Failure
from core.infra.cluster import MachineBlock
from core.infra.settings import process_environment

_FOLLOW_EVERY_S = 0.05


def journal_file(block: MachineBlock) -> Path:
    """Return the journal of this machine's last start."""
    return block.log_dir / "start.jsonl"


def start(block: MachineBlock, root: str, held: SupervisorLock) -> "subprocess.Popen[bytes]":
    """Start the supervisor of `block`, composed by the module `cli.roots.ROOT`, and hand it the lock."""
    with (block.log_dir / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"cli.roots.{root}", str(block.file), str(held.descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(process_environment()),
            cwd="/",
            start_new_session=True,
            pass_fds=(held.descriptor,),
        )


def stopping() -> Failure:
    """Return why nothing can be done with what is being ended."""
    return Failure(
        "cluster.not_running", "the cluster is being ended", hint="`slice down` waits for that; then `slice up` again"
    )


def follow(journal: Path, is_alive: Callable[[], bool], *, is_plain: bool) -> None:
    """Show the journal until the cluster is ready.

    Raises:
        Failure: the start was given up, or the supervisor is gone.
    """
    reader = JournalReader(journal)
    show = show_for(is_plain=is_plain)
    pause = threading.Event()
    try:
        while True:
            is_gone = not is_alive()
            for line in reader.new_lines():
                show.line(line)
                if line.mark is Mark.READY:
                    return
                if line.mark is Mark.ENDED:
                    raise _failure(line.data)
                if line.mark is Mark.STOPPING:
                    raise stopping()
            if is_gone:
                raise Failure(
                    "cluster.start_failed",
                    "the supervisor ended before the cluster was ready",
                    hint=f"its log is {journal.parent / 'supervisor.log'}; `slice doctor` looks further",
                )
            pause.wait(_FOLLOW_EVERY_S)
    except KeyboardInterrupt:
        print(
            "\ninterrupted: the cluster goes on starting; `slice up` follows it again, `slice down` ends it",
            file=sys.stderr,
        )
        raise
    finally:
        show.finish()


def _failure(data: Mapping[str, object]) -> Failure:
    code = str(data.get("code"))
    known = code if code in CODES else "cluster.start_failed"
    return Failure(known, str(data.get("message")), hint=str(data.get("hint") or ""))
