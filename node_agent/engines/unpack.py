"""Takes an engine's binary out of what an operator gave: `python -m node_agent.engines.unpack JSON`.

Comes in: `{"source", "place", "executable", "source_hosts"}`. Goes out, a line each on standard output:
`progress DONE TOTAL`, and at the end `{"digest", "executable"}`, or with exit code 1 `{"code", "message", "hint"}`. A
child of `node_agent.engines.binaries` that can be killed: an archive is a stranger's. Nothing is unpacked before its
digest is right.
"""

import contextlib
import hashlib
import json
import os
import posixpath
import re
import stat
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from core.errors import Failure
from core.sources import ModelSource, SourceKind, parse_source
from core.units import GIB, text_from_bytes
from node_agent.files.halt import Halt
from node_agent.files.http_get import Bounds, HttpGet, Interrupted
from node_agent.files.lines import PublicLines
from node_agent.files.reach import Origin, Reach, origins_from_text
from node_agent.files.store import CHUNK_BYTES, disk_errors, require_digest, require_space

MAX_DOWNLOAD_BYTES = 8 * GIB  # Ollama with all its CUDA libraries is below 4 GiB
MAX_UNPACKED_BYTES = 24 * GIB
MAX_MEMBERS = 20_000
_STEP_BYTES = 16 * 1024**2
_TAR_NAME = re.compile(r"\.(tgz|tar\.gz)\Z")
_OTHER_ARCHIVE = re.compile(r"\.(zip|7z|xz|bz2|zst|tar|gz|deb|rpm|whl)\Z")
_PROGRAM_MAGIC = (b"\x7fELF", b"#!")


def main(arguments: list[str]) -> int:
    """Do the work; return 0, or 1 after printing a failure."""
    order = json.loads(arguments[0])
    try:
        hosts = origins_from_text(order.get("source_hosts", ""))
        found = taken(order["source"], Path(order["place"]), order["executable"], hosts)
    except Failure as failure:
        print(json.dumps({"code": failure.code, "message": failure.message, "hint": failure.hint}))
        return 1
    print(json.dumps(found))
    return 0


def taken(source_text: str, place: Path, executable: str, trusted: Iterable[Origin] = ()) -> Mapping[str, str]:
    """Bring the file of `source_text` and put the program `executable` into `place`, which is there and empty.

    `trusted` origins may lead to addresses that are not public.

    Raises:
        Failure: `source.*`, `format.refused`, `disk.full`.
    """
    source = parse_source(source_text)
    if source.kind not in (SourceKind.FILE, SourceKind.HTTPS):
        raise Failure("source.unsupported", "an engine comes from file:/PATH or https://HOST/PATH", param="source")
    if source.kind is SourceKind.HTTPS and source.file_sha256 is None:
        raise Failure("source.invalid", "a program from the network needs its digest", hint="append #file=SHA256")
    name = source.file_name
    if not _TAR_NAME.search(name) and _OTHER_ARCHIVE.search(name):
        raise Failure(
            "format.refused", f"{name} is no .tgz, .tar.gz or plain program", hint="pack it anew with tar -czf"
        )
    whole = place / ".whole"
    try:
        with disk_errors():
            digest = _brought(source, whole, trusted)
            require_digest(name, source.file_sha256, digest)
            if _TAR_NAME.search(name):
                with whole.open("rb") as stream:
                    unpack(stream, place)
                program = found_program(place, executable)
            else:
                program = _plain(whole, place, executable, name)
    finally:
        whole.unlink(missing_ok=True)
    return {"digest": digest, "executable": program}


def _brought(source: ModelSource, whole: Path, trusted: Iterable[Origin]) -> str:
    opened = _local(source) if source.kind is SourceKind.FILE else _remote(source, trusted)
    with opened as (chunks, total):
        if total > MAX_DOWNLOAD_BYTES:
            raise _too_large(source.file_name)
        require_space(whole.parent, total)
        digest, done, told = hashlib.sha256(), 0, 0
        with whole.open("wb") as out:
            for chunk in chunks:
                done += len(chunk)
                if done > (total or MAX_DOWNLOAD_BYTES):
                    raise _too_large(source.file_name)
                digest.update(chunk)
                out.write(chunk)
                if done - told >= _STEP_BYTES:
                    told = done
                    print(f"progress {done} {total}", flush=True)
    if done < total:
        raise Failure("source.unreachable", f"{source.file_name} broke off on its way", hint="it is tried again")
    return digest.hexdigest()


def _too_large(name: str) -> Failure:
    return Failure("source.invalid", f"{name} is longer than announced, or than {text_from_bytes(MAX_DOWNLOAD_BYTES)}")


_Opened = tuple[Iterator[bytes], int]
"""A source's bytes and how many there are, 0 when nobody says."""


@contextlib.contextmanager
def _local(source: ModelSource) -> Iterator[_Opened]:
    hint = "the path is the node's own, and the node agent must be able to read it"
    try:
        # Not blocking: a named pipe without a writer would hold us for ever.
        handle = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise Failure("source.not_found", f"{source.path} cannot be opened on this node: {reason}", hint=hint) from None
    with os.fdopen(handle, "rb") as stream:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise Failure("source.not_found", f"{source.path} is no plain file", hint=hint)
        yield iter(partial(stream.read, CHUNK_BYTES), b""), facts.st_size


@contextlib.contextmanager
def _remote(source: ModelSource, trusted: Iterable[Origin]) -> Iterator[_Opened]:
    reach = Reach(trusted=trusted)
    environment = os.environ  # noqa: TID251 - a child's own, chosen by its parent
    bounds = Bounds()
    lines = PublicLines(reach=reach, environment=environment, bounds=bounds)
    http = HttpGet(lines=lines, bounds=bounds, monotonic=time.monotonic)
    try:
        with http.open(reach.url_of(source.host, source.path), {}, Halt()) as answer:
            yield answer.chunks(), answer.length or 0
    except Interrupted as broken:
        raise broken.failure from None


def unpack(stream: IO[bytes], place: Path, *, max_members: int = MAX_MEMBERS) -> None:
    """Unpack a .tar.gz below `place`: plain files, directories and links that stay inside, nothing else.

    Raises:
        Failure: `format.refused` for anything that leads outside, is no plain thing, or is too much; `disk.full`.
    """
    root = place.resolve()
    count, size = 0, 0
    links: list[Path] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for member in archive:
                count, size = count + 1, size + max(0, member.size)
                if count > max_members or size > MAX_UNPACKED_BYTES:
                    raise _refused("it holds too much", "")
                target = _inside(root, member.name)
                if member.issym():
                    _link(member, target, root)
                    links.append(target)
                elif member.isdir():
                    target.mkdir(parents=True, exist_ok=True, mode=0o700)
                elif member.isreg():
                    require_space(root, member.size)
                    _write(archive, member, target)
                else:
                    raise _refused("it holds a hard link, device or pipe", member.name)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise Failure("format.refused", "the archive is damaged", hint="download it again") from error
    except OSError as error:
        if type(error).__name__ == "BadGzipFile" or isinstance(error, FileExistsError | NotADirectoryError):
            raise Failure("format.refused", "the archive is damaged", hint="download it again") from error
        raise
    # Each link was lexically inside when it was made; a chain of them may still lead out.
    for link in links:
        if not Path(os.path.realpath(link)).is_relative_to(root):
            raise _refused("a link leads outside", str(link.relative_to(root)))


def _inside(root: Path, name: str) -> Path:
    parts = PurePosixPath(name)
    if not name or "\x00" in name or len(name) > 1000 or parts.is_absolute() or ".." in parts.parts:
        raise _refused("a name leads outside", name)
    target = root / parts
    # Never through a link, wherever it leads: what is lexically inside is then inside.
    if target != root and target.parent.resolve() != target.parent:
        raise _refused("a name leads through a link", name)
    return target


def _link(member: tarfile.TarInfo, target: Path, root: Path) -> None:
    end = posixpath.normpath(str(PurePosixPath(member.name).parent / member.linkname))
    if posixpath.isabs(member.linkname) or end.split("/")[0] == "..":
        raise _refused("a link leads outside", member.name)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if target.is_symlink() or target.exists():
        raise _refused("it holds a name twice", member.name)
    target.symlink_to(member.linkname)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = archive.extractfile(member)
    assert content is not None, "a plain file has content"
    mode = 0o700 if member.mode & 0o100 else 0o600
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as out:
        while chunk := content.read(CHUNK_BYTES):
            out.write(chunk)


def _refused(why: str, name: str) -> Failure:
    named = f": {name[:120]!r}" if name else ""
    return Failure("format.refused", f"the archive is refused: {why}{named}", hint="take it from the engine's makers")


def found_program(place: Path, executable: str) -> str:
    """Return where the program `executable` is below `place`, the one nearest to the top.

    Raises:
        Failure: `format.refused`.
    """
    found = [path for path in place.rglob(executable) if path.is_file()]
    if not found:
        raise Failure("format.refused", f"the archive holds no program {executable!r}", hint="is it another engine's?")
    nearest = min(found, key=lambda path: (len(path.parts), str(path)))
    nearest.chmod(0o700)
    return str(nearest.relative_to(place))


def _plain(whole: Path, place: Path, executable: str, name: str) -> str:
    with whole.open("rb") as stream:
        if not stream.read(4).startswith(_PROGRAM_MAGIC):
            raise Failure("format.refused", f"{name} is no program", hint="give the program itself, or a .tar.gz of it")
    program = place / "bin" / executable
    program.parent.mkdir(mode=0o700, exist_ok=True)
    whole.rename(program)
    program.chmod(0o700)
    return str(program.relative_to(place))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
