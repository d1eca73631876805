"""The store: files addressed by the SHA-256 of their bytes, each beside the facts of its header.

Comes in: complete, verified files. Goes out: their paths. Called by `node_agent.files.pulls`. A name in the store
exists only when its bytes are whole, verified and on disk; nothing in it is ever changed. All calls block on the disk.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import Failure
from core.ids import Sha256
from core.infra import cluster
from core.units import MIB, text_from_bytes

CHUNK_BYTES = 1024 * 1024
_RESERVE_BYTES = 256 * MIB
_MARGIN = 1.1
_NAME = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of the store; `facts_json` is "" when its header was never read here.

    `used_unix_s` is when a replica last used it, or when it was stored.
    """

    sha256: Sha256
    size_bytes: int
    facts_json: str = ""
    chat_template_sha256: str = ""
    used_unix_s: int = 0


class Cancelled(Exception):
    """The work was told to end; nothing of it is in the store."""


class FileStore:
    """`<root>/sha256/<aa>/<digest>` and, beside it, `<digest>.facts.json`."""

    def __init__(self, root: Path) -> None:
        self._root = root / "sha256"

    def path_of(self, sha256: Sha256) -> Path:
        """Return where a file of this digest is or would be."""
        return self._root / sha256[:2] / sha256

    def get(self, sha256: str) -> StoredFile | None:
        """Return the stored file, or None when it is not here."""
        if not _NAME.match(sha256):
            return None
        path = self.path_of(Sha256(sha256))
        try:
            status = path.stat()
        except OSError:
            return None
        facts, used = {}, status.st_mtime
        with contextlib.suppress(OSError, ValueError):
            used = self._facts_of(sha256).stat().st_mtime
            facts = json.loads(self._facts_of(sha256).read_text())
        return StoredFile(
            sha256=Sha256(sha256),
            size_bytes=status.st_size,
            used_unix_s=int(used),
            facts_json=str(facts.get("facts_json", "")),
            chat_template_sha256=str(facts.get("chat_template_sha256", "")),
        )

    def _facts_of(self, sha256: str) -> Path:
        return self.path_of(Sha256(sha256)).with_name(f"{sha256}.facts.json")

    def touch(self, sha256: Sha256) -> StoredFile | None:
        """Note that a file is used now, and return it."""
        with contextlib.suppress(OSError):
            os.utime(self._facts_of(sha256))
        return self.get(sha256)

    def remove(self, sha256: str) -> bool:
        """Remove a file unless a replica's directory has a link to it; return whether it is gone.

        A replica whose engine reads the file at its place in the store has no link: the caller knows of those.
        """
        if not _NAME.match(sha256):
            return True
        path = self.path_of(Sha256(sha256))
        try:
            if path.stat().st_nlink > 1:
                return False
            path.unlink()
        except FileNotFoundError:
            pass
        self._facts_of(sha256).unlink(missing_ok=True)
        return True

    def all(self) -> tuple[StoredFile, ...]:
        """Return every file of the store."""
        names = sorted(path.name for path in self._root.glob("??/*") if _NAME.match(path.name))
        return tuple(stored for name in names if (stored := self.get(name)) is not None)

    def recalled(self, source: str) -> str | None:
        """Return the digest of the file that came from `source` before, or None."""
        try:
            return self._note_of(source).read_text().strip()
        except OSError:
            return None

    def _note_of(self, source: str) -> Path:
        return self._root.parent / "sources" / hashlib.sha256(source.encode()).hexdigest()

    def partial_of(self, source: str) -> Path:
        """Return where a file from `source` is written while it is copied; swept when the node agent begins."""
        return self._root.parent / "incoming" / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.partial"

    def put(self, partial: Path, stored: StoredFile, source: str) -> None:
        """Make `partial`, a file of ours whose digest was verified, a file of the store by renaming it.

        Raises:
            Failure: `disk.full`.
        """
        target = self.path_of(stored.sha256)
        cluster.make_private_dir(target.parent)
        cluster.write_private(
            target.with_name(f"{stored.sha256}.facts.json"),
            json.dumps({"facts_json": stored.facts_json, "chat_template_sha256": stored.chat_template_sha256}),
        )
        partial.rename(target)
        sync_file(target.parent)
        note = self._note_of(source)
        cluster.make_private_dir(note.parent)
        cluster.write_private(note, f"{stored.sha256}\n")

    def sweep_partials(self) -> None:
        """Remove what a copy interrupted by the node agent's death left."""
        for partial in (*self._root.glob("??/*.partial"), *self._root.parent.glob("incoming/*.partial")):
            partial.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Put the bytes of a file, or the names in a directory, on disk before anybody is told that they are."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_space(directory: Path, size_bytes: int) -> None:
    """Refuse to begin what would fill the disk: `size_bytes` x 1.1 + 256 MiB must be free.

    Raises:
        Failure: `disk.full`.
    """
    free, needed = shutil.disk_usage(directory).free, int(size_bytes * _MARGIN) + _RESERVE_BYTES
    if free < needed:
        raise Failure(
            "disk.full",
            f"{text_from_bytes(needed)} are needed below {directory}, {text_from_bytes(free)} are free",
            hint="free space on that disk, or start the cluster with another --data-dir on a larger one",
        )


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn the system's ENOSPC and EDQUOT into `disk.full`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Failure("disk.full", "the disk of the model store is full", hint="free some space") from error


def digest_of(path: Path, stopped: threading.Event, progress: Callable[[int], None] = lambda done: None) -> Sha256:
    """Return the SHA-256 of a file; `progress` hears the bytes read so far.

    Raises:
        Cancelled: `stopped` was set.
        OSError: the file cannot be read.
    """
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            if stopped.is_set():
                raise Cancelled
            digest.update(chunk)
            done += len(chunk)
            progress(done)
    return Sha256(digest.hexdigest())


def require_digest(what: str, expected: str | None, got: str) -> None:
    """Check a digest that somebody pinned.

    Raises:
        Failure: `source.digest_mismatch` naming both.
    """
    if expected and expected != got:
        raise Failure(
            "source.digest_mismatch",
            f"{what} has SHA-256 {got}, expected {expected}",
            hint="the file was changed or damaged on its way; check where it comes from before pulling again",
        )


def require_gguf(path: Path, what: str) -> None:
    """Check the magic bytes.

    Raises:
        Failure: `format.refused` when it is no GGUF file.
    """
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise Failure(
                "format.refused",
                f"{what} is no GGUF file",
                hint="only GGUF models are taken: pickled weights could run code when loaded",
            )
