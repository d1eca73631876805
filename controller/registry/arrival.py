"""From a node's report of a finished pull to the version it becomes: pure.

In: the pull's row and the report, whose types and bounds the gRPC edge has checked. Out: `NewVersion`, or a `Failure`
that ends the pull. Called by `controller.registry.pulls`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from adapters import facts as model_facts
from controller.exchange import FileReport, VersionFile
from controller.registry.model import NewVersion, Pull
from core.errors import Failure
from core.formats import magic
from core.sources import ModelSource, parse_source

_FORMATS = frozenset({magic.GGUF, magic.SAFETENSORS})
_ONLY = "only safetensors and GGUF are taken"
_BIGINT_MAX = 2**63 - 1


def arrived(pull: Pull, report: FileReport) -> NewVersion:
    """Return the version that `report` says has come.

    Raises:
        Failure: `source.digest_mismatch` when it is not what the pull pinned, or its chat template not what the node
            hashed; `source.invalid` when the node names another place, `format.refused`, `request.invalid_json` or
            `request.invalid_field` for facts that are none.
    """
    source = parse_source(pull.source)
    files = _files(source, report)
    if source.file_sha256 is not None and source.file_sha256 != files[0].sha256:
        raise Failure(
            "source.digest_mismatch",
            f"the file has SHA-256 {files[0].sha256[:12]}..., pinned is {source.file_sha256[:12]}...",
            hint="the source changed under its name: do not use it before you know why",
        )
    facts = model_facts.facts_from_json(report.facts_json)
    if facts.format not in _FORMATS:
        raise Failure("format.refused", f"the node brought the format {facts.format[:40]!r}", hint=_ONLY)
    _check_template(report)
    size_bytes = sum(file.size_bytes for file in files)
    if size_bytes > _BIGINT_MAX:
        raise Failure("request.invalid_field", "the files of the version have more bytes than any disk")
    return NewVersion(
        digest=digest(files),
        source=_of_kind(report.resolved_source, source) or pull.source,
        files=files,
        format=facts.format,
        size_bytes=size_bytes,
        chat_template_sha256=report.chat_template_sha256,
        chat_template=report.chat_template,
        template_findings=report.template_findings,
        facts=asdict(facts),
    )


def digest(files: Sequence[VersionFile]) -> str:
    """Return what identifies a version of `files`: of one file its own SHA-256, of many that of their manifest.

    The manifest is the JSON list of [path, SHA-256, bytes], sorted by path, in UTF-8 without spaces: the order in which
    files are named, and where they come from, make no other version.
    """
    if len(files) == 1:
        return f"sha256:{files[0].sha256}"
    rows = sorted([file.path, file.sha256, file.size_bytes] for file in files)
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _files(source: ModelSource, report: FileReport) -> tuple[VersionFile, ...]:
    if report.version_files:
        return tuple(
            VersionFile(
                path=file.path,
                sha256=file.sha256,
                size_bytes=file.size_bytes,
                source=_of_kind(file.source, source),
            )
            for file in report.version_files
        )
    if report.sha256 is None:
        raise Failure("source.digest_mismatch", "the node says the file is there but not its digest")
    return (VersionFile(path=source.file_name, sha256=report.sha256, size_bytes=report.size_bytes),)


def _check_template(report: FileReport) -> None:
    """Check that the digest by which a chat template is approved is that of the text which is shown."""
    found = hashlib.sha256(report.chat_template.encode()).hexdigest()
    if report.chat_template and found != report.chat_template_sha256:
        raise Failure(
            "source.digest_mismatch",
            f"the chat template has SHA-256 {found[:12]}..., the node says {report.chat_template_sha256[:12]}...",
            hint="look after that node before you pull from it again",
        )


def _of_kind(text: str, asked: ModelSource) -> str:
    """Return `text`, a source that a node resolved: it may pin what was asked for, not lead somewhere else."""
    if text:
        found = parse_source(text)
        if _place(found) != _place(asked):
            raise Failure(
                "source.invalid",
                f"the node says that {asked.text[:200]!r} is {text[:200]!r}, which is another source",
                hint="look after that node before you pull from it again",
            )
    return text


def _place(source: ModelSource) -> tuple[str, ...]:
    return (source.kind, source.host, source.repository.lower(), source.distribution.lower(), source.version)
