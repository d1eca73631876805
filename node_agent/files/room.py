"""The disk's room, shared by jobs that do not know each other: what one still has to write counts against the others.

Called by `node_agent.files.pulls` and by what writes, in threads too. A job that does not fit waits here until it does;
while it waits it promises nothing, so that smaller ones go ahead.
"""

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from core.errors import Failure
from core.units import MIB, text_from_bytes, text_from_seconds

RESERVE_BYTES = 256 * MIB


class NoRoom(Failure):
    """A `disk.full` that knows how much is missing."""

    def __init__(self, directory: Path, needed_bytes: int, free_bytes: int) -> None:
        self.needed_bytes = needed_bytes
        self.missing_bytes = max(1, needed_bytes - free_bytes)
        super().__init__(
            "disk.full",
            f"{text_from_bytes(needed_bytes)} are needed below {directory}, {text_from_bytes(max(0, free_bytes))} are "
            f"free ({text_from_bytes(RESERVE_BYTES)} stay in reserve): {self.missing_bytes} bytes are missing",
            hint="free space on that disk, or start the cluster with another --data-dir on a larger one",
        )


class Room:
    """The room of one directory's disk; `free` reads its free bytes, `look_s` is how often a waiting job looks again,
    `timeout_s` how long it waits at most.
    """

    def __init__(
        self,
        directory: Path,
        *,
        timeout_s: float,
        look_s: float = 2.0,
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self._directory = directory
        self._timeout_s = timeout_s
        self._look_s = look_s
        self._free = free
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self._promised: dict[Promise, int] = {}
        self._freed = asyncio.Event()

    def promise(self) -> "Promise":
        """Return a promise of nothing yet."""
        return Promise(self)

    def freed(self) -> None:
        """Say that something was removed: waiting jobs look at once."""
        self._freed.set()

    @property
    def timeout_s(self) -> float:
        """How long a job waits for room before it fails."""
        return self._timeout_s

    async def wait(self, needed_bytes: int, timeout_s: float, *, is_measured: bool) -> None:
        """Return when `needed_bytes` more could be written; after the next look at the earliest unless `is_measured`.

        Raises:
            Failure: `disk.full` after `timeout_s`.
        """
        may_look = is_measured
        if not is_measured:
            self._freed.clear()  # our own promise was just given back: that is no news
        try:
            async with asyncio.timeout(timeout_s):
                while not may_look or await asyncio.to_thread(self.left) < needed_bytes:
                    may_look = True
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._look_s):
                            await self._freed.wait()
                    self._freed.clear()
        except TimeoutError:
            left = await asyncio.to_thread(self.left)
            failure = NoRoom(self._directory, needed_bytes, left)
            waited = text_from_seconds(self._timeout_s)
            raise Failure("disk.full", f"{failure.message}, after waiting for {waited}", hint=failure.hint) from None

    async def measured(self, failure: Failure, needed_bytes: int) -> Failure:
        """Return a `disk.full` that says how much is missing, where the disk itself only said that it is full."""
        if isinstance(failure, NoRoom):
            return failure
        return NoRoom(self._directory, needed_bytes, await asyncio.to_thread(self.left))

    def left(self) -> int:
        """Return the bytes that nobody has promised to write; below 0 when there are too few. Blocks."""
        with self._lock:
            return self._left(None)

    def _left(self, mine: "Promise | None") -> int:
        others = sum(size for promise, size in self._promised.items() if promise is not mine)
        return self._free(self._directory) - self._reserve_bytes - others

    def hold(self, promise: "Promise", size: int) -> None:
        """Hold `size` bytes for a promise instead of what it held, if they fit: somebody else may have filled the disk.

        Raises:
            NoRoom: they do not.
        """
        with self._lock:
            if size > (left := self._left(promise)):
                raise NoRoom(self._directory, size, left)
            self._promised[promise] = size

    def lower(self, promise: "Promise", size: int) -> None:
        """Hold less than before."""
        with self._lock:
            self._promised[promise] = size

    def release(self, promise: "Promise") -> None:
        """Hold nothing for a promise any more."""
        with self._lock:
            self._promised.pop(promise, None)
        self._freed.set()


class Promise:
    """What one job still has to write, by file."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}

    @property
    def total_bytes(self) -> int:
        """Bytes this job still has to write."""
        return sum(self._left.values())

    def ask(self, sizes: Mapping[str, int]) -> None:
        """Promise to write so many more bytes of each file named.

        Raises:
            NoRoom: they do not fit beside what all have promised.
        """
        with self._lock:
            self._left.update(sizes)
            self._room.hold(self, self.total_bytes)

    def wrote(self, path: str, left: int) -> None:
        """Say that only `left` bytes of a file are still to come."""
        with self._lock:
            if left < self._left.get(path, 0):
                self._left[path] = left
                self._room.lower(self, self.total_bytes)

    def release(self) -> None:
        """Give everything back."""
        with self._lock:
            self._left.clear()
            self._room.release(self)


class Patience:
    """How long one job goes on waiting: the whole time anew whenever it got further since it waited last."""

    def __init__(self, room: Room, monotonic: Callable[[], float]) -> None:
        self._room = room
        self._monotonic = monotonic
        self._left_s = room.timeout_s
        self._best_bytes = 0

    async def wait(self, failure: Failure, done_bytes: int, total_bytes: int) -> None:
        """Return when what `failure` missed could be written.

        A disk that merely says it is full (a quota, or somebody else's file that has grown) tells no number: then what
        the job still has to write must fit.

        Raises:
            Failure: `disk.full` when its time is over.
        """
        if done_bytes > self._best_bytes:
            self._best_bytes, self._left_s = done_bytes, self._room.timeout_s
        is_measured = isinstance(failure, NoRoom)
        needed = failure.needed_bytes if isinstance(failure, NoRoom) else max(total_bytes - done_bytes, MIB)
        since = self._monotonic()
        await self._room.wait(needed, self._left_s, is_measured=is_measured)
        self._left_s -= self._monotonic() - since
