"""Model files of the node's own disk: copied into files of ours, never linked.

Comes in: the path of a user's file or folder. Goes out: the files that make up the version, and copies whose bytes were
hashed as they were written. Called by `node_agent.files.arrivals`, in a thread. The user may append to, truncate or
remove the original at any time, so its inode must not be the store's; it may be a link, as in the caches of model hubs,
and then what it leads to is taken.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from core.errors import Failure
from core.ids import Sha256
from core.infra import cluster
from core.sources import ModelSource
from core.texts import sendable
from node_agent.files import choose, kinds
from node_agent.files.choose import Candidate
from node_agent.files.manifest import Item, Manifest
from node_agent.files.store import CHUNK_BYTES, Cancelled, digest_of, disk_errors

_FICLONE = 0x40049409
"""_IOW(0x94, 9, int) of linux/fs.h: the target shares the source's blocks until one of the two is written."""


_MAX_ENTRIES = 20_000
_MAX_DEPTH = 2  # a repository's weights lie in its root, what its pipeline needs one folder below


def local_manifest(source: ModelSource, formats: Sequence[str]) -> Manifest:
    """Return the files that a `file:` source means: itself with the other parts of a split GGUF, or a folder's. Blocks.

    Raises:
        Failure: `source.not_found`, `source.ambiguous`, `format.refused`.
    """
    path = Path(source.path)
    if path.is_dir():
        folder, selector = path, ""
        candidates = _listed(folder)
    else:
        folder, selector = path.parent, path.name
        candidates = _siblings(path)
    if source.file_sha256 or (selector and not choose.is_part(selector)):
        files = tuple(one for one in candidates if one.path == path.name) or (Candidate(path=path.name),)
    else:
        files = choose.choose(str(path), candidates, selector, formats).files
    return Manifest(
        items=tuple(
            Item(
                path=file.path,
                source=f"file:{folder / file.path}",
                size_bytes=file.size_bytes,
                local=folder / file.path,
            )
            for file in files
        ),
        resolved=source.text,
    )


def _siblings(path: Path) -> list[Candidate]:
    try:
        if not choose.is_part(path.name):
            return [Candidate(path=path.name, size_bytes=path.stat().st_size)]
        found = [entry for entry in os.scandir(path.parent) if entry.is_file() and _is_utf8(entry.name)]
        return [Candidate(path=entry.name, size_bytes=entry.stat().st_size) for entry in found]
    except OSError:
        return []  # what is wrong is said when the file itself is opened


def _listed(folder: Path) -> list[Candidate]:
    found = list(_plain_files(folder))
    if len(found) > _MAX_ENTRIES:
        raise Failure(
            "source.not_found", f"{folder} has more than {_MAX_ENTRIES} files", hint="name one model's folder"
        )
    return found


def _plain_files(folder: Path) -> Iterator[Candidate]:
    """Yield plain files and links to such, as in the caches of hubs; links to folders are not followed."""
    count = 0
    for parent, folders, names in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        if len(inside.parts) >= _MAX_DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not _is_utf8((inside / name).as_posix()):
                continue
            with contextlib.suppress(OSError):  # dangling, or gone meanwhile
                facts = (Path(parent) / name).stat()
                if stat.S_ISREG(facts.st_mode):
                    yield Candidate(path=(inside / name).as_posix(), size_bytes=facts.st_size)
            if (count := count + 1) > _MAX_ENTRIES:
                return


def _is_utf8(name: str) -> bool:
    """Return whether a name can be told: what is not UTF-8 on the disk has surrogates here."""
    return sendable(name) == name


def take_local(
    path: Path,
    partial: Path,
    *,
    stopped: threading.Event,
    progress: Callable[[int, int], None],
    admit: Callable[[int], None],
) -> Sha256:
    """Copy `path` to `partial` and return the SHA-256 of what was written. Blocks.

    Shares blocks where the file system can, and needs no space then; else `admit` hears the bytes that will be written
    and may refuse. `progress` hears bytes done and bytes in all. Whatever is raised, no `partial` is left.

    Raises:
        Failure: `source.not_found`, `source.invalid` when the file changes meanwhile, `format.refused`, `disk.full`.
        Cancelled: `stopped` was set.
    """
    cluster.make_private_dir(partial.parent)
    with _opened(path) as original:
        kinds.require_head(path.name, os.pread(original.fileno(), 64, 0), os.fstat(original.fileno()).st_size)
        try:
            return _copied(original, path, partial, stopped, progress, admit)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _opened(path: Path) -> IO[bytes]:
    try:
        # Not blocking: a named pipe without a writer would hold the thread for ever.
        handle = os.open(path.resolve(strict=True), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        raise Failure("source.not_found", f"{path} cannot be read by the node agent", hint="check its mode") from None
    except (OSError, RuntimeError):  # RuntimeError: links that lead in a circle
        raise Failure("source.not_found", f"there is no file {path} on this node", hint="check the path") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Failure("source.not_found", f"{path} is no plain file", hint="check the path")
    return os.fdopen(handle, "rb")


def _copied(
    original: IO[bytes],
    path: Path,
    partial: Path,
    stopped: threading.Event,
    progress: Callable[[int, int], None],
    admit: Callable[[int], None],
) -> Sha256:
    before = os.fstat(original.fileno())
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with disk_errors(), os.fdopen(handle, "wb") as out:
        is_shared = _shares_blocks(original, out)
        if not is_shared:
            admit(before.st_size)
            digest = _hashed_copy(original, out, before.st_size, stopped, progress)
    if is_shared:
        return digest_of(partial, stopped, lambda done: progress(done, before.st_size))
    after = os.fstat(original.fileno())
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise Failure(
            "source.invalid",
            f"{path} was changed while it was copied",
            hint="pull it again when nothing writes to it any more",
        )
    return digest


def needs_room(path: Path, directory: Path) -> bool:
    """Return whether a copy of `path` below `directory` takes blocks of its own. Blocks."""
    cluster.make_private_dir(directory)
    try:
        with tempfile.TemporaryFile(dir=directory) as probe, path.open("rb") as original:
            return not _shares_blocks(original, probe)
    except OSError:
        return True


def _shares_blocks(original: IO[bytes], out: IO[bytes]) -> bool:
    try:
        fcntl.ioctl(out.fileno(), _FICLONE, original.fileno())
    except OSError:  # another file system, or one that shares none
        return False
    return True


def _hashed_copy(
    original: IO[bytes], out: IO[bytes], size: int, stopped: threading.Event, progress: Callable[[int, int], None]
) -> Sha256:
    digest, done = hashlib.sha256(), 0
    # Invariant: `done` never passes `size`, for which there is room, however the original grows.
    while chunk := original.read(min(CHUNK_BYTES, size - done)):
        if stopped.is_set():
            raise Cancelled
        digest.update(chunk)
        out.write(chunk)
        done += len(chunk)
        progress(done, size)
    return Sha256(digest.hexdigest())
