"""Who has a data directory: one lock for `up`, the supervisor and `down`, and the word of who the supervisor is.

The lock is a flock(2) on `DATA/supervisor.lock`: it vanishes with its last holder however that ends. `slice up` takes
it before it records anything and hands its descriptor to the supervisor, so that there is no moment in which a start
is under way and the directory looks free.
"""

import fcntl
import json
import os
import threading
from pathlib import Path
from types import TracebackType

from core.infra import cluster
from core.infra.clock import SystemClock
from core.infra.processes import ProcessMark, is_alive, mark

_RETRY_S = 0.02


class SupervisorLock:
    """The exclusive lock on a data directory."""

    def __init__(self, data_dir: Path, *, inherited: int = -1) -> None:
        self._data_dir = data_dir
        self.descriptor = inherited
        """The held descriptor, to be handed to a child; -1 when not held."""

    def try_hold(self, wait_s: float = 0.0) -> bool:
        """Take the lock, waiting up to `wait_s` for another holder; return whether it is held now."""
        clock, pause = SystemClock(), threading.Event()
        deadline = clock.monotonic() + wait_s
        handle = os.open(self._data_dir / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if clock.monotonic() >= deadline:
                    os.close(handle)
                    return False
                pause.wait(_RETRY_S)
            else:
                self.descriptor = handle
                return True

    def release(self) -> None:
        """Let go of the lock when held; a child that was handed the descriptor keeps it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> "SupervisorLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_held(data_dir: Path) -> bool:
    """Return whether somebody has the lock; asks with a shared lock, so that two who ask do not see each other."""
    try:
        handle = os.open(data_dir / "supervisor.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def announce(data_dir: Path) -> None:
    """Record this process as the supervisor; called under the lock."""
    me = mark(os.getpid())
    if me is not None:
        text = json.dumps({"pid": me.pid, "start_ticks": me.start_ticks})
        cluster.write_private(data_dir / "supervisor.json", text)


def supervisor(data_dir: Path) -> ProcessMark | None:
    """Return the living supervisor of a data directory, or None."""
    try:
        values = json.loads((data_dir / "supervisor.json").read_text())
        found = ProcessMark(pid=int(values["pid"]), start_ticks=int(values["start_ticks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if is_alive(found) and is_held(data_dir) else None
