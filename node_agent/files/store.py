"""The store: files addressed by the SHA-256 of their bytes, each beside the facts of its header.

Comes in: complete, verified files. Goes out: their paths, and what a pinned source turned out to be. Called by
`node_agent.files.arrivals` and `pulls`. A name in the store exists only when its bytes are whole, verified and on disk;
nothing in it is ever changed. All calls block on the disk.
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
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import Failure
from core.ids import Sha256
from core.infra import cluster
from node_agent.files.header import HeaderFacts
from node_agent.files.room import RESERVE_BYTES, NoRoom
from node_agent.files.wants import VersionPart

CHUNK_BYTES = 1024 * 1024
_MARGIN = 1.1
_STORED_MODE = 0o444  # also for the nobody of a container; the directories above are ours alone
_NAME = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of the store; `facts_json` is "" when its header was never read here, `used_unix_s` is when a replica
    last used it, or when it was stored.
    """

    sha256: Sha256
    size_bytes: int
    facts_json: str = ""
    chat_template_sha256: str = ""
    used_unix_s: int = 0


@dataclass(frozen=True, kw_only=True)
class StoredVersion:
    """What a source turned out to be: files that all are in the store, the weights' first, and their facts."""

    parts: tuple[VersionPart, ...]
    resolved_source: str
    facts: HeaderFacts

    @property
    def first(self) -> VersionPart:
        """The file that engines are pointed at."""
        return self.parts[0]


class Cancelled(Exception):
    """The work was told to end; nothing of it is in the store."""


class FileStore:
    """`<root>/sha256/<aa>/<digest>` of mode 0444 and, beside it, `<digest>.facts.json`, whose time is the last use.

    Invariant: nobody opens a stored file for writing. Engines get it as a hard link, so the mode is what keeps them
    from changing the bytes under their name; what runs as root is not held by it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / "sha256"

    def path_of(self, sha256: Sha256) -> Path:
        """Return where a file of this digest is or would be."""
        return self._root / sha256[:2] / sha256

    def _facts_of(self, sha256: Sha256) -> Path:
        return self.path_of(sha256).with_name(f"{sha256}.facts.json")

    def get(self, sha256: str) -> StoredFile | None:
        """Return the stored file, or None when it is not here."""
        if not _NAME.match(sha256):
            return None
        digest = Sha256(sha256)
        facts: dict[str, str] = {}
        try:
            status = self.path_of(digest).stat()
            used = status.st_mtime
        except OSError:
            return None
        with contextlib.suppress(OSError, ValueError):
            used = self._facts_of(digest).stat().st_mtime
            facts = json.loads(self._facts_of(digest).read_text())
        return StoredFile(
            sha256=digest,
            size_bytes=status.st_size,
            facts_json=str(facts.get("facts_json", "")),
            chat_template_sha256=str(facts.get("chat_template_sha256", "")),
            used_unix_s=int(used),
        )

    def all(self) -> tuple[StoredFile, ...]:
        """Return every file of the store."""
        names = sorted(path.name for path in self._root.glob("??/*") if _NAME.match(path.name))
        return tuple(stored for name in names if (stored := self.get(name)) is not None)

    def touch(self, sha256: Sha256) -> StoredFile | None:
        """Note that a file is used now, and return it; None when it is not here."""
        if self.get(sha256) is None:
            return None
        facts = self._facts_of(sha256)
        with contextlib.suppress(OSError):
            if facts.exists():
                os.utime(facts)
            else:
                cluster.write_private(facts, "{}")
        return self.get(sha256)

    def put(self, partial: Path, stored: StoredFile) -> None:
        """Make `partial`, a file of ours whose digest was verified, a file of the store by renaming it.

        Raises:
            Failure: `disk.full`.
        """
        target = self.path_of(stored.sha256)
        cluster.make_private_dir(target.parent)
        with disk_errors():
            self._write_facts(stored)
            partial.chmod(_STORED_MODE)
            sync_file(partial)
            partial.rename(target)
            sync_file(target.parent)

    def note_facts(self, stored: StoredFile) -> None:
        """Note the facts of a file that is in the store."""
        with disk_errors():
            self._write_facts(stored)

    def _write_facts(self, stored: StoredFile) -> None:
        facts = {"facts_json": stored.facts_json, "chat_template_sha256": stored.chat_template_sha256}
        cluster.write_private(self._facts_of(stored.sha256), json.dumps(facts))

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
        self._facts_of(Sha256(sha256)).unlink(missing_ok=True)
        return True

    # -- versions ---------------------------------------------------------------------------------------------------

    def remember(self, key: str, version: StoredVersion) -> None:
        """Note what a pinned source turned out to be, so that it is never asked again.

        Raises:
            Failure: `disk.full`.
        """
        note = self._note_of(key)
        cluster.make_private_dir(note.parent)
        with disk_errors():
            cluster.write_private(note, json.dumps(asdict(version)))

    def recalled(self, key: str) -> StoredVersion | None:
        """Return what `key` turned out to be before, if all of it is still here."""
        try:
            values = json.loads(self._note_of(key).read_text())
            parts = tuple(VersionPart(**part) for part in values["parts"])
            facts = values["facts"]
            version = StoredVersion(
                parts=parts,
                resolved_source=values["resolved_source"],
                facts=HeaderFacts(**{**facts, "template_findings": tuple(facts["template_findings"])}),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return version if parts and all(self.get(part.sha256) is not None for part in parts) else None

    def remember_git(self, git_sha1: str, sha256: Sha256) -> None:
        """Note which file of the store git knows by `git_sha1`, all that a hub says of a small file.

        Raises:
            Failure: `disk.full`.
        """
        note = self._note_of(f"git {git_sha1}")
        cluster.make_private_dir(note.parent)
        with disk_errors():
            cluster.write_private(note, json.dumps({"sha256": sha256}))

    def recalled_git(self, git_sha1: str) -> str:
        """Return the digest of the file that git knows by `git_sha1`, "" when it never came."""
        try:
            return str(json.loads(self._note_of(f"git {git_sha1}").read_text())["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _note_of(self, key: str) -> Path:
        return self._root.parent / "versions" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

    def sweep(self) -> None:
        """Remove what a copy interrupted by the node agent's death left, and hold every file at its mode."""
        for partial in (*self._root.glob("??/*.partial"), *self._root.parent.glob("incoming/*.partial")):
            partial.unlink(missing_ok=True)
        for path in self._root.glob("??/*"):
            if _NAME.match(path.name):
                path.chmod(_STORED_MODE)


def sync_file(path: Path) -> None:
    """Put the bytes of a file, or the names in a directory, on disk before anybody is told that they are."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_space(directory: Path, size_bytes: int) -> None:
    """Refuse to begin what would fill the disk: `size_bytes` x 1.1 and the reserve must be free.

    Raises:
        Failure: `disk.full`.
    """
    free, needed = shutil.disk_usage(directory).free - RESERVE_BYTES, int(size_bytes * _MARGIN)
    if free < needed:
        raise NoRoom(directory, needed, free)


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
