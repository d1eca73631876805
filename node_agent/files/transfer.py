"""The side of one download that runs in threads: what is asked for, what the answer means, what is written.

Comes in: a `Remote`. Goes out: a partial file, and `Restart` when what has come is worth nothing. Called by
`node_agent.files.download`, which decides what is asked for next and how often. Whatever a server says, no byte past
the announced size is written.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import Failure
from core.ids import Sha256
from node_agent.files import ranges
from node_agent.files.halt import Halt
from node_agent.files.http_get import Answer, HttpGet, Interrupted, Token
from node_agent.files.partial import Partial
from node_agent.files.ranges import Meaning, Offer, Range
from node_agent.files.store import CHUNK_BYTES, Cancelled, require_digest

_HEAD_BYTES = 64
MAX_FILE_BYTES = 4 * 1024**4
_MANIFESTS = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One file somewhere; `size_bytes` is None and the digests "" when not known beforehand.

    `git_sha1` is the identifier that git gives to a file's bytes, which is all that a hub says of small ones.
    """

    name: str
    url: str
    size_bytes: int | None = None
    sha256: str = ""
    git_sha1: str = ""
    token: Token | None = None

    @property
    def server(self) -> str:
        """Whose validators are comparable: scheme, host and port of the URL."""
        return "/".join(self.url.split("/", 3)[:3])


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told: `admit` hears the bytes still to come before they are written and may refuse (`disk.full`), `told`
    hears bytes done and in all, `look` the file's first bytes and may refuse (`format.refused`). Called in threads.
    """

    admit: Callable[[int], None]
    told: Callable[[int, int], None]
    look: Callable[[bytes], None]


class Restart(Exception):
    """What has come belongs to another file, or the server does not do what it began with."""


class Transfer:
    """One download's side that runs in threads."""

    def __init__(self, http: HttpGet, remote: Remote, watch: Watch, monotonic: Callable[[], float]) -> None:
        self.remote = remote
        self.halt = Halt()
        self.knows_ranges = False
        self.partial: Partial  # from `begin` on
        self._has_begun = False
        self._http = http
        self._watch = watch
        self._monotonic = monotonic
        self._has_looked = False

    def begin(self, path: Path) -> None:
        remote = self.remote
        self.partial = Partial(
            path,
            identity=remote.sha256 or remote.git_sha1 or remote.url,
            is_verifiable=bool(remote.sha256 or remote.git_sha1),
            server=remote.server,
            monotonic=self._monotonic,
        )
        if remote.size_bytes is not None and self.partial.size != remote.size_bytes:
            if self.partial.size is not None:
                self.partial.clear()
            self.partial.size = remote.size_bytes
        self._has_begun = True
        self._tell()

    def end(self) -> None:
        """Note how far the file is and close it."""
        if self._has_begun:
            self.partial.close()

    def restart(self) -> None:
        """Begin anew, after every thread has left."""
        self.halt = Halt()  # lanes that were ended by one that failed were told so
        self.knows_ranges = self._has_looked = False
        self.partial.clear()
        self.partial.size = self.remote.size_bytes

    @property
    def done_bytes(self) -> int:
        """Bytes that have come."""
        return self.partial.done_bytes if self._has_begun else 0

    def next_piece(self) -> Range:
        """Return the first piece: the whole rest of a small file, or enough to see how the server answers."""
        partial, bounds = self.partial, self._http.bounds
        if partial.size is None:
            return 0, bounds.first_bytes
        start, end = ranges.missing(partial.had, partial.size)[0]
        return start, end if partial.size <= bounds.piece_bytes else min(end, start + bounds.first_bytes)

    def take(self, asked: Range, *, is_alone: bool) -> None:
        """Bring one range, or the whole file if that is what comes and nobody else works on it."""
        partial = self.partial
        if not (todo := partial.gaps(asked)):
            return
        asked = (todo[0][0], asked[1])
        headers = {}
        if asked != (0, partial.size):
            headers["range"] = f"bytes={asked[0]}-{asked[1] - 1}"
            if partial.validator and partial.had:
                headers["if-range"] = partial.validator
        with self._http.open(self.remote.url, headers, self.halt, self.remote.token) as answer:
            offer = self._offer(answer, asked)
            if offer.meaning in (Meaning.CHANGED, Meaning.WRONG) or (offer.meaning is Meaning.WHOLE and not is_alone):
                raise Restart
            if offer.meaning is Meaning.WHOLE:
                partial.clear()
                asked = (0, MAX_FILE_BYTES)
            self._accept(offer, answer)
            known = MAX_FILE_BYTES if partial.size is None else partial.size
            self._write(answer, asked[0], min(asked[1], known))

    def _offer(self, answer: Answer, asked: Range) -> Offer:
        validator = ranges.strong(answer.headers.get("etag", ""))
        offer = ranges.meaning_of(
            status=answer.status,
            content_range=answer.headers.get("content-range", ""),
            length=answer.length,
            validator=validator,
            asked=asked,
            size=self.partial.size if self.partial.had else None,
            known=self.partial.validator,
        )
        if offer.meaning is Meaning.WHOLE and not answer.tells_its_end and not self.remote.sha256:
            raise Failure(
                "source.invalid",
                f"the server of {self.remote.name} does not say how long the file is",
                hint="pin the file with #file=SHA256",
            )
        return offer

    def _accept(self, offer: Offer, answer: Answer) -> None:
        """Take what the head says of the file's size and validator, or refuse it."""
        partial, expected = self.partial, self.remote.size_bytes
        size = offer.size
        if expected is not None and size is not None and size != expected:
            raise _other_size(self.remote.name, size, expected)
        if offer.meaning is Meaning.PART:
            if size is None and expected is None:
                raise Restart
            self.knows_ranges = True
        if (size or 0) > MAX_FILE_BYTES:
            raise Failure("source.invalid", f"{self.remote.name} is said to have {size} bytes")
        partial.size = size if size is not None else expected
        partial.validator = offer.validator or partial.validator
        if partial.size is not None:
            self._watch.admit(partial.size - partial.done_bytes)

    def _write(self, answer: Answer, at: int, end: int) -> None:
        partial = self.partial
        for chunk in answer.chunks():
            if at + len(chunk) > end:
                if partial.size is not None and end < partial.size:
                    raise Restart
                raise _other_size(self.remote.name, at + len(chunk), end)
            if partial.size is None:
                self._watch.admit(len(chunk))
            partial.write(at, chunk)
            at += len(chunk)
            self._look()
            self._tell()
        if partial.size is None and answer.length is None and answer.tells_its_end:
            partial.size = at
        elif at < end and answer.length is None and answer.tells_its_end:
            raise _other_size(self.remote.name, at, end)
        elif at < end:
            raise Interrupted(
                Failure("source.unreachable", f"the connection broke off in the middle of {self.remote.name}")
            )

    def _look(self) -> None:
        if not self._has_looked and len(head := self.partial.head(_HEAD_BYTES)) == _HEAD_BYTES:
            self._has_looked = True
            self._watch.look(head)

    def _tell(self) -> None:
        self._watch.told(self.partial.done_bytes, self.partial.size or 0)

    def small(self, limit_bytes: int) -> bytes:
        """Return a whole small body."""
        body = bytearray()
        with self._http.open(self.remote.url, {"accept": _MANIFESTS}, self.halt, self.remote.token) as answer:
            for chunk in answer.chunks():
                body += chunk
                if len(body) > limit_bytes:
                    raise Failure("source.invalid", f"{self.remote.name} has more than {limit_bytes} bytes")
            if answer.length is not None and len(body) < answer.length:
                raise Interrupted(Failure("source.unreachable", f"{self.remote.name} came only in part"))
        return bytes(body)

    def digest(self) -> Sha256:
        """Return the SHA-256 of the whole file; checks git's digest on the way when that is what is known."""
        partial = self.partial
        size = partial.size or 0
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with partial.path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                if self.halt.is_set():
                    raise Cancelled
                sha256.update(chunk)
                if self.remote.git_sha1:
                    sha1.update(chunk)
        if self.remote.git_sha1 and self.remote.git_sha1 != sha1.hexdigest():
            if partial.was_resumed:
                raise Restart
            raise Failure(
                "source.digest_mismatch",
                f"{self.remote.name} has git digest {sha1.hexdigest()}, expected {self.remote.git_sha1}",
                hint="the file was changed or damaged on its way; pull it again later",
            )
        return Sha256(sha256.hexdigest())

    def is_right(self, digest: Sha256) -> bool:
        return not self.remote.sha256 or self.remote.sha256 == digest

    def require_right(self, digest: Sha256) -> None:
        require_digest(self.remote.name, self.remote.sha256, digest)


def _other_size(name: str, got: int, expected: int) -> Failure:
    return Failure(
        "source.digest_mismatch",
        f"{name} has {got} bytes, expected {expected}",
        hint="the file was changed, or its server lies about it; check where it comes from before pulling again",
    )
