"""One source on its way into the store, as those see it who work on it and those who wait for it.

Made by `node_agent.files.pulls`, filled by `node_agent.files.arrivals` and its threads.
"""

import asyncio
from collections.abc import Callable

from core.errors import Failure
from node_agent.files.room import Promise
from node_agent.files.store import StoredVersion


class Job:
    """How far it is, and the word to end; `task` ends with the version, or with the failure as a value.

    `held` are digests of files of the store that it counts on: they must not leave while it works.
    """

    def __init__(self, promise: Promise, changed: Callable[[], None]) -> None:
        self.is_unwanted = False
        self.promise = promise
        self.waiters = 0
        self.has_begun = False
        self.task: asyncio.Task[StoredVersion | Failure] | None = None
        self.pause: Failure | None = None
        self.paused = asyncio.Event()
        self.held: set[str] = set()
        self._changed = changed
        self._files: dict[str, tuple[int, int]] = {}

    @property
    def done_bytes(self) -> int:
        """Bytes that are here."""
        return sum(done for done, _ in list(self._files.values()))

    @property
    def total_bytes(self) -> int:
        """Bytes of all files; 0 while one is unknown."""
        sizes = list(self._files.values())
        return sum(max(done, total) for done, total in sizes) if all(total for _, total in sizes) else 0

    def told(self, path: str, done: int, total: int) -> None:
        """Note how far one file is (total 0: unknown); called from threads too."""
        self._files[path] = (done, total)

    def forget(self) -> None:
        """Forget how far the files are."""
        self._files.clear()

    def begin(self) -> None:
        """Say that work is done on it now."""
        self.has_begun, self.pause = True, None
        self.paused.clear()
        self._changed()

    def wait_for_room(self, failure: Failure) -> None:
        """Say why it does not go on at present."""
        self.promise.release()
        self.pause = failure
        self.paused.set()
        self._changed()

    def end(self) -> None:
        """Tell its task to end, and its threads by it: nobody wants it any more."""
        self.is_unwanted = True
        if self.task is not None:
            self.task.cancel()
