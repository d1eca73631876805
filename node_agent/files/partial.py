"""A file that is coming: its bytes so far, and a note beside it from which the next node agent goes on.

Called by `node_agent.files.download`, from several threads that write different ranges. Invariant: a range stands in
the note only after its bytes were written. What a power cut loses of them is found by the digest; where none is known
beforehand, a note of an earlier boot is not believed.
"""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from core.infra import cluster
from node_agent import killing
from node_agent.files import ranges
from node_agent.files.ranges import Range
from node_agent.files.store import disk_errors

_NOTE_EVERY_S = 2.0
_ROOM_FOR_NOTE_BYTES = 64 * 1024


class Partial:
    """Owns the open file at `path` and `<path>.json`."""

    def __init__(
        self, path: Path, *, identity: str, is_verifiable: bool, server: str, monotonic: Callable[[], float]
    ) -> None:
        """Open or begin; `identity` says which bytes these are to be, a note of others is dropped. Blocks.

        `server` brings them now: a validator that another one gave says nothing to it.
        """
        self.path = path
        self._server = server
        self.size: int | None = None
        self.validator = ""
        self.had: tuple[Range, ...] = ()
        self._identity = identity
        self._is_verifiable = is_verifiable
        self._monotonic = monotonic
        self._noted_at = monotonic()
        self._lock = threading.Lock()
        self._note = note_of(path)
        cluster.make_private_dir(path.parent)
        self._load()
        self.was_resumed = bool(self.had)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if self.had else os.O_TRUNC)
        with disk_errors():
            self._handle = os.open(path, flags, 0o600)

    @property
    def done_bytes(self) -> int:
        """Bytes that have come."""
        return sum(end - start for start, end in self.had)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing of a file whose size is known."""
        return self.size is not None and not ranges.missing(self.had, self.size)

    def gaps(self, within: Range) -> tuple[Range, ...]:
        """Return what is missing of a range."""
        return tuple(
            (max(start, within[0]), end) for start, end in ranges.missing(self.had, within[1]) if end > within[0]
        )

    def write(self, at: int, chunk: bytes) -> None:
        """Put a chunk in its place. Blocks.

        Raises:
            Failure: `disk.full`.
        """
        with disk_errors():
            done = 0
            while done < len(chunk):
                done += os.pwrite(self._handle, chunk[done:], at + done)
            with self._lock:
                self.had = ranges.joined([*self.had, (at, at + len(chunk))])
                if self._monotonic() - self._noted_at >= _NOTE_EVERY_S:
                    self._save()

    def head(self, count: int) -> bytes:
        """Return the file's first bytes as far as they have come."""
        return os.pread(self._handle, count, 0) if self.had and self.had[0][0] == 0 else b""

    def clear(self) -> None:
        """Forget every byte: the file begins anew."""
        with self._lock:
            self.had, self.size, self.validator, self.was_resumed = (), None, "", False
            self._note.unlink(missing_ok=True)
            os.ftruncate(self._handle, 0)

    def close(self) -> None:
        """Note how far it is and close the file; nothing is noted of what could not be gone on with."""
        try:
            with self._lock:
                try:
                    self._save()
                except OSError:
                    # A full disk has no room for the note either: some of the file's end makes way for it.
                    self._give_up_the_end()
                    self._save()
        except OSError:
            self._note.unlink(missing_ok=True)
        finally:
            os.close(self._handle)

    def _give_up_the_end(self) -> None:
        if self.had:
            start, end = self.had[-1]
            end = max(start, end - _ROOM_FOR_NOTE_BYTES)
            os.ftruncate(self._handle, end)
            self.had = ranges.joined([*self.had[:-1], (start, end)])

    def _save(self) -> None:
        self._noted_at = self._monotonic()
        if not self._is_verifiable and not self.validator:
            return
        values = {
            "identity": self._identity,
            "boot_id": killing.boot_id(),
            "size": self.size,
            "validator": self.validator,
            "server": self._server,
            "had": self.had,
        }
        cluster.write_private(self._note, json.dumps(values))

    def _load(self) -> None:
        try:
            values = json.loads(self._note.read_text())
            length = self.path.stat().st_size
            is_believed = self._is_verifiable or values["boot_id"] == killing.boot_id()
            if not is_believed or values["identity"] != self._identity:
                return
            had = ranges.joined([(int(start), int(end)) for start, end in values["had"]])
            size = None if values["size"] is None else int(values["size"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if not had or (had[0][0] >= 0 and had[-1][1] <= length and (size is None or had[-1][1] <= size)):
            self.had, self.size = had, size
            self.validator = str(values["validator"]) if values.get("server", self._server) == self._server else ""


def note_of(path: Path) -> Path:
    """Return where the note of a partial file lies."""
    return path.with_name(f"{path.name}.json")


def kept_bytes(path: Path) -> int:
    """Return the bytes that an earlier try left of a partial file, as its note says. Blocks."""
    try:
        return sum(int(end) - int(start) for start, end in json.loads(note_of(path).read_text())["had"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def discard(path: Path) -> None:
    """Remove a partial file and its note."""
    path.unlink(missing_ok=True)
    note_of(path).unlink(missing_ok=True)
