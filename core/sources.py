"""Where a model's files come from, as a value parsed from what people type.

| kind | text | what it names |
|---|---|---|
| pypi | `pypi:DIST==VERSION/PATH[#wheel=SHA,file=SHA]` | one file of a wheel |
| file | `file:/abs/path[#file=SHA]` | a file, or a folder of safetensors, on the node's own disk |
| https | `https://host/path[#file=SHA]` | one file |
| hf | `hf:ORG/NAME[@REVISION][:FILE-or-QUANT][#file=SHA]` | one GGUF file, or a repository's safetensors |
| ollama | `ollama:[HOST/][NAMESPACE/]NAME[:TAG][@sha256:SHA]` | what an Ollama manifest names, or one blob of it |
| ollama | `ollama:[HOST/][NAMESPACE/]NAME[:TAG]#manifest=SHA` | what that very manifest names |

A source is *pinned* when it names the same bytes for ever: a digest, or for `hf:` a commit of 40 hexadecimal digits
(which files of that commit are taken still depends on what the target's engines eat).
Pure; the node agent's `files` package fetches.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from core.errors import Failure
from core.ids import Sha256


class SourceKind(StrEnum):
    """Kinds of places that models come from."""

    PYPI = "pypi"
    FILE = "file"
    HTTPS = "https"
    HF = "hf"
    OLLAMA = "ollama"


_DIGESTS = r"(?:#(?P<digests>[^#]+))?\Z"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_PATTERNS: Mapping[SourceKind, re.Pattern[str]] = {
    SourceKind.PYPI: re.compile(
        rf"^pypi:(?P<dist>{_NAME})==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!_-]*)/(?P<path>[^#]+){_DIGESTS}"
    ),
    SourceKind.FILE: re.compile(rf"^file:(?P<path>/[^#]*){_DIGESTS}"),
    SourceKind.HTTPS: re.compile(rf"^https://(?P<host>[A-Za-z0-9.-]+(?::[0-9]{{1,5}})?)/(?P<path>[^#\s]*){_DIGESTS}"),
    SourceKind.HF: re.compile(
        rf"^hf:(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?"
        rf"(?::(?P<path>[^#:]+))?{_DIGESTS}"
    ),
    SourceKind.OLLAMA: re.compile(
        rf"^ollama:(?:(?P<host>[A-Za-z0-9.-]+(?::[0-9]{{1,5}})?)/(?={_NAME}/))?(?P<repository>(?:{_NAME}/)?{_NAME})"
        rf"(?::(?P<revision>{_NAME}))?(?:@sha256:(?P<blob>[0-9a-f]{{64}}))?{_DIGESTS}"
    ),
}
_FORMS: Mapping[SourceKind, str] = {
    SourceKind.PYPI: "pypi:DIST==VERSION/PATH",
    SourceKind.FILE: "file:/absolute/path",
    SourceKind.HTTPS: "https://HOST/PATH",
    SourceKind.HF: "hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME:QUANT",
    SourceKind.OLLAMA: "ollama:NAME:TAG",
}
_HEX = re.compile(r"^[0-9a-f]{64}\Z")
_COMMIT = re.compile(r"^[0-9a-f]{40}\Z")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """One place; digests are None when the person did not pin them.

    `path` is the file within a wheel, a disk, a server or a repository ("" : to be chosen); for `hf:` it may also be a
    quantisation such as `Q4_K_M`. `host` is set for `https:` and, when it is not the default registry, for `ollama:`.
    The container is what the file lies in or is named by: a wheel, or an Ollama manifest.
    """

    kind: SourceKind
    text: str
    path: str = ""
    distribution: str = ""
    version: str = ""
    host: str = ""
    repository: str = ""
    revision: str = ""
    container_sha256: Sha256 | None = None
    file_sha256: Sha256 | None = None

    @property
    def file_name(self) -> str:
        """The last part of the path, or of the repository when the path is not known yet."""
        return (self.path or self.repository).rstrip("/").rsplit("/", 1)[-1].split("?")[0]

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a commit, which never moves."""
        return _COMMIT.match(self.revision) is not None

    @property
    def is_pinned(self) -> bool:
        """Whether the source names the same bytes for ever; a released wheel never changes."""
        is_released = self.kind is SourceKind.PYPI
        is_commit = self.kind is SourceKind.HF and self.is_commit
        return self.file_sha256 is not None or is_released or is_commit or self.manifest_sha256 is not None

    @property
    def manifest_sha256(self) -> Sha256 | None:
        """The digest of the Ollama manifest that names the files, None when it is not pinned."""
        return self.container_sha256 if self.kind is SourceKind.OLLAMA else None

    @property
    def model_name(self) -> str:
        """A name for the model that the source suggests, fit for `core.names`."""
        stem = self.repository.rsplit("/", 1)[-1] or re.sub(r"\.(gguf|safetensors)\Z", "", self.file_name)
        return _NOT_IN_NAMES.sub("-", stem.lower()).strip("._-")[:63] or "model"


def looks_like_source(text: str) -> bool:
    """Return whether `text` is meant as a source, known or not: no name of a model has a colon."""
    return ":" in text


def parse_source(text: str) -> ModelSource:
    """Return the source that `text` names.

    Raises:
        Failure: `source.unsupported` for an unknown scheme, `source.invalid` for a malformed one.
    """
    scheme = text.split(":", 1)[0]
    if scheme not in set(SourceKind) or ":" not in text:
        hint = "http: is not taken: use https" if scheme == "http" else f"use {'; '.join(_FORMS.values())}"
        raise Failure("source.unsupported", f"{text[:200]!r} names no known source", hint=hint, param="source")
    kind = SourceKind(scheme)
    found = _PATTERNS[kind].match(text)
    parts = found.groupdict() if found else {}
    path = parts.get("path") or ""
    if found is None or ".." in path.split("/") or "\x00" in text or (kind is not SourceKind.FILE and path[:1] == "/"):
        raise Failure("source.invalid", f"{text[:200]!r} is malformed", hint=f"write {_FORMS[kind]}", param="source")
    container, file = _digests(kind, text, parts.get("digests"))
    blob = parts.get("blob")
    if (blob and file not in (None, blob)) or (kind is SourceKind.OLLAMA and container and (blob or file)):
        raise Failure("source.invalid", f"{text[:200]!r} has two digests", hint="leave one out", param="source")
    return ModelSource(
        kind=kind,
        text=text,
        path=path,
        distribution=parts.get("dist") or "",
        version=parts.get("version") or "",
        host=(parts.get("host") or "").lower(),
        repository=parts.get("repository") or "",
        revision=parts.get("revision") or "",
        container_sha256=container,
        file_sha256=Sha256(blob) if blob else file,
    )


def hf_text(repository: str, revision: str, path: str = "") -> str:
    """Return the text of an `hf:` source; `path` is a file, a quantisation, a format, or "" for what suits."""
    return f"hf:{repository}@{revision}" + (f":{path}" if path else "")


def ollama_text(source: ModelSource, sha256: Sha256) -> str:
    """Return the text that names one blob of the registry that `source` names."""
    host = f"{source.host}/" if source.host else ""
    tag = f":{source.revision}" if source.revision else ""
    return f"ollama:{host}{source.repository}{tag}@sha256:{sha256}"


def ollama_manifest_text(source: ModelSource, sha256: Sha256) -> str:
    """Return the text that names all that one manifest of the registry names, whatever its tag means later."""
    host = f"{source.host}/" if source.host else ""
    tag = f":{source.revision}" if source.revision else ""
    return f"ollama:{host}{source.repository}{tag}#manifest={sha256}"


def pinned_text(text: str, sha256: Sha256) -> str:
    """Return `text` with the digest of the one file that it names, instead of the one it may have had."""
    base, _, digests = text.partition("#")
    wheel = [pair for pair in digests.split(",") if pair.startswith("wheel=")]
    return f"{base}#{','.join([*wheel, f'file={sha256}'])}"


def _digests(kind: SourceKind, text: str, part: str | None) -> tuple[Sha256 | None, Sha256 | None]:
    named: dict[str, str] = {}
    container = "manifest" if kind is SourceKind.OLLAMA else "wheel"
    for pair in (part or "").split(",") if part else []:
        key, _, value = pair.partition("=")
        if key not in {container, "file"} or not _HEX.match(value):
            hint = f"write #file=SHA256 or #{container}=SHA256"
            raise Failure("source.invalid", f"{text[:200]!r} has a malformed digest", hint=hint)
        named[key] = value
    whole, file = named.get(container), named.get("file")
    return (Sha256(whole) if whole else None, Sha256(file) if file else None)
