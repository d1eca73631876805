"""Usage rows on disk while the controller is away: files of rows in one directory that the doors of a host share.

Comes in: rows. Goes out: the same rows, oldest file first. Every method blocks on files; `report` calls
them in a thread. A file belongs to who holds its lock (flock), which ends with the process: so a door never takes
what another still writes, and finds what a dead one left. Files are not synced: they outlive a process, and a machine
that loses its power may lose its last seconds.
"""

import contextlib
import errno
import fcntl
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from protos.slice.routes.v1 import routes_pb2

MAX_BYTES = 64 * 1024**2
"""Most that all files of the directory may hold: about 250,000 rows."""
ROWS_PER_FILE = 500
_LENGTH = struct.Struct(">I")
_SUFFIX = ".rows"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One file whose lock is ours: its rows, and the door that wrote them."""

    path: Path
    handle: int
    door_id: str
    rows: list[routes_pb2.UsageRow]


class Spool:
    """The rows of one door, and those of dead ones."""

    def __init__(self, directory: Path, *, door_id: str, max_bytes: int = MAX_BYTES) -> None:
        self._directory = directory
        self._door_id = door_id
        self._max_bytes = max_bytes
        self._handle: int | None = None
        self._rows = 0
        # A call whose caller was cancelled may still run when the next one comes.
        self._lock = threading.Lock()

    def append(self, rows: list[routes_pb2.UsageRow], *, unix_us: int) -> int:
        """Keep `rows` and return how many of them: none when the directory is full.

        What came first stays, so that a long absence loses its end and not its beginning.

        Raises:
            OSError: nothing of them was kept.
        """
        data = b"".join(_LENGTH.pack(len(text)) + text for text in (row.SerializeToString() for row in rows))
        with self._lock:
            if self._size() + len(data) > self._max_bytes:
                return 0
            self._write(data, len(rows), unix_us)
        return len(rows)

    def take(self) -> Taken | None:
        """Return the oldest file that nobody else holds, this door's own included; None when there is none.

        Raises:
            OSError: it cannot be read.
        """
        with self._lock:
            found = self._oldest()
            if found is None and self._handle is not None:
                self._end()  # only now: a long absence is not to leave a file for each try
                found = self._oldest()
            return found

    def done(self, taken: Taken) -> None:
        """Remove a file whose rows have arrived.

        Raises:
            OSError: it stays.
        """
        taken.path.unlink(missing_ok=True)

    def release(self, taken: Taken) -> None:
        """Let go of a file that was taken."""
        os.close(taken.handle)

    def close(self) -> None:
        """End the current file; the next rows begin another."""
        with self._lock:
            self._end()

    def _oldest(self) -> Taken | None:
        for path in self._files():
            handle = _locked(path)
            if handle is not None:
                door_id = path.name.removesuffix(_SUFFIX).partition(".")[2]
                return Taken(path=path, handle=handle, door_id=door_id, rows=_rows_in(handle))
        return None

    def _write(self, data: bytes, count: int, unix_us: int) -> None:
        handle = self._opened(unix_us)
        begins = os.fstat(handle).st_size
        try:
            if os.write(handle, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, begins)
            raise
        self._rows += count
        if self._rows >= ROWS_PER_FILE:
            self._end()

    def _end(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._rows = None, 0

    def _opened(self, unix_us: int) -> int:
        """Return the file that is written now; another door may catch one between its birth and its lock."""
        while self._handle is None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._directory / f"{unix_us:017d}.{self._door_id}{_SUFFIX}"
            unix_us += 1
            with contextlib.suppress(FileExistsError):
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._handle = handle if _is_ours(handle, path) else None
        return self._handle

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self._directory.iterdir() if path.name.endswith(_SUFFIX))
        except FileNotFoundError:
            return []

    def _size(self) -> int:
        size = 0
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):  # delivered by another door meanwhile
                size += path.stat().st_size
        return size


def _locked(path: Path) -> int | None:
    """Return a handle with the lock of `path`, None while another holds it or when it is gone."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    return handle if _is_ours(handle, path) else None


def _is_ours(handle: int, path: Path) -> bool:
    """Lock `handle` and return whether it is still the file at `path`; closed when it is not ours."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == path.stat().st_ino:
            return True
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return False


def _rows_in(handle: int) -> list[routes_pb2.UsageRow]:
    """Return the whole rows of a file; a last one that its writer did not finish is none."""
    data = os.pread(handle, os.fstat(handle).st_size, 0)
    rows, at = [], 0
    while at + _LENGTH.size <= len(data):
        begins = at + _LENGTH.size
        at = begins + _LENGTH.unpack_from(data, at)[0]
        if at > len(data):
            break
        try:
            rows.append(routes_pb2.UsageRow.FromString(data[begins:at]))
        except DecodeError:
            break
    return rows
