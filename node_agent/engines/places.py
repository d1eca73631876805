"""Where installed engines lie: `<root>/<engine>/<version>/`, each with a marker that makes it whole.

Comes in: engine names and versions. Goes out: paths, markers, notes of failed installs. Called by
`node_agent.engines.house`; blocks on the disk. Written last, a marker says that an engine is installed; removed first,
its absence says that the rest is rubbish, whenever the node agent dies.
"""

import contextlib
import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import CODES, Failure
from core.infra import cluster
from core.versions import newest_first

MARKER = "slice-engine.json"
_PATH_WORD = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+!-]{0,127}$")

Key = tuple[str, str]
"""Engine and version."""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What runs an engine here: absolute paths; `executable` is "" for an engine without a binary of its own."""

    python: str
    executable: str = ""


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What was installed: `executable` relative to its place, `digest` of the lock or of what the operator gave."""

    requirements: tuple[str, ...] = ()
    executable: str = ""
    digest: str = ""
    size_bytes: int = 0
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class FailedInstall:
    """Why an install failed, how often, and from where; `is_final` when another attempt cannot help."""

    code: str
    message: str
    attempts: int
    is_final: bool
    source: str = ""


class Places:
    """The directories below one root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, key: Key) -> Path:
        """Return the directory of one version.

        Raises:
            Failure: `request.invalid_field` when engine or version is no plain word.
        """
        engine, version = key
        if not _PATH_WORD.match(engine) or not _PATH_WORD.match(version):
            raise Failure("request.invalid_field", f"{engine} {version!r} names no version", param="engine_version")
        return self._root / engine / version

    def marker(self, key: Key) -> Marker | None:
        """Return the marker of a version, None when it is not installed."""
        try:
            values = json.loads((self.of(key) / MARKER).read_text())
            return Marker(
                requirements=tuple(values.get("requirements", ())),
                executable=str(values.get("executable", "")),
                digest=str(values.get("digest", "")),
                size_bytes=int(values.get("size_bytes", 0)),
                source=str(values.get("source", "")),
            )
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def write_marker(self, key: Key, marker: Marker) -> None:
        """Make a version installed."""
        cluster.write_private(self.of(key) / MARKER, json.dumps(asdict(marker)) + "\n")

    def versions(self, engine: str) -> tuple[str, ...]:
        """Return the versions of an engine that are installed here, newest first."""
        if not _PATH_WORD.match(engine):
            return ()
        return tuple(newest_first(marker.parent.name for marker in self._root.glob(f"{engine}/*/{MARKER}")))

    def clear(self, key: Key) -> None:
        """Remove a version, its marker first, and the note of its last failure.

        Raises:
            OSError: something of it cannot be removed.
        """
        place = self.of(key)
        (place / MARKER).unlink(missing_ok=True)
        if place.exists():
            shutil.rmtree(place)
        self._note_of(key).unlink(missing_ok=True)

    def scratch_of(self, key: Key) -> Path:
        """Return a directory for what exists only during an install, beside the version's own."""
        return self.of(key).with_name(f".{key[1]}.tmp")

    def _note_of(self, key: Key) -> Path:
        return self.of(key).with_name(f".{key[1]}.failed.json")

    def note_failure(self, key: Key, failed: FailedInstall) -> None:
        """Remember a failure for the next node agent; a disk that is full forgets it."""
        with contextlib.suppress(OSError):
            cluster.make_private_dir(self.of(key).parent)
            cluster.write_private(self._note_of(key), json.dumps(asdict(failed)) + "\n")

    def failure(self, key: Key) -> FailedInstall | None:
        """Return what `note_failure` wrote, or None."""
        try:
            found = FailedInstall(**json.loads(self._note_of(key).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return found if found.code in CODES else None

    def forget_failure(self, key: Key) -> None:
        """Remove the note of a failure."""
        self._note_of(key).unlink(missing_ok=True)


def size_below(place: Path) -> int:
    """Return the bytes that the files below `place` take; links are not followed."""
    total = 0
    for path in place.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    return total
