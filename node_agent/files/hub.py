"""Repositories of a Hugging Face hub: from a source to the files that are wanted of one commit.

Comes in: an `hf:` source. Goes out: a `Manifest`. Called by `node_agent.files.arrivals`. The hub is asked by
`huggingface_hub` in a child process (`hub_list`); its client and the hub's answers stay out of the node agent.
"""

import asyncio
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from core.errors import CODES, Failure
from core.sources import ModelSource, hf_text
from core.texts import sendable
from node_agent.files import choose, kinds
from node_agent.files.choose import Candidate
from node_agent.files.http_get import Token
from node_agent.files.manifest import Item, Manifest
from node_agent.files.origins import SourceOrigins
from node_agent.files.transfer import MAX_FILE_BYTES, Remote
from node_agent.subprocesses import Children

_DEADLINE_S = 90.0
_MAX_LINES = 20_010
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PATH = re.compile(r"(?!.*(^|/)\.\.?(/|$))[^/#:\\\x00-\x1f][^#:\\\x00-\x1f]{0,500}\Z")
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "PATH"})


class Hub:
    """Asks one hub; `scratch` is a directory for what its client wants to keep."""

    def __init__(
        self, *, origins: SourceOrigins, scratch: Path, environment: Mapping[str, str], children: Children
    ) -> None:
        self._origins = origins
        self._scratch = scratch
        self._environment = environment
        self._children = children

    async def manifest(self, source: ModelSource, formats: Sequence[str]) -> Manifest:
        """Return what `source` means: the hub is not asked about a file whose commit and digest are pinned.

        Raises:
            Failure: `source.*`, `format.refused`, `settings.invalid`.
        """
        token = await asyncio.to_thread(self._origins.hub_token)
        if source.is_commit and source.file_sha256 and kinds.is_taken(source.path):
            only = Candidate(path=source.path, sha256=source.file_sha256)
            return Manifest(items=(self._item(source, source.revision, only, token),), resolved=source.text)
        commit, candidates = await self._listing(source)
        if source.file_sha256:
            candidates = [one for one in candidates if one.path == source.path]
        place = f"{source.repository}@{commit[:12]}"
        choice = choose.choose(place, candidates, source.path, formats)
        items = tuple(self._item(source, commit, one, token) for one in choice.files)
        if len(items) > choose.MAX_FILES:
            raise Failure("source.invalid", f"{place} has {len(items)} files of one model, more than we take")
        return Manifest(items=items, resolved=hf_text(source.repository, commit, choice.selector))

    def sweep(self) -> None:
        """Remove what children left that a node agent's death ended. Blocks."""
        for home in self._scratch.glob("hub-*"):
            shutil.rmtree(home, ignore_errors=True)

    def _item(self, source: ModelSource, commit: str, file: Candidate, token: Token | None) -> Item:
        endpoint = self._origins.hf_endpoint.rstrip("/")
        return Item(
            path=file.path,
            source=hf_text(source.repository, commit, file.path),
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            remote=Remote(
                name=f"{file.path} of {source.repository}",
                url=f"{endpoint}/{source.repository}/resolve/{commit}/{quote(file.path)}",
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                git_sha1=file.git_sha1,
                token=token,
            ),
        )

    async def _listing(self, source: ModelSource) -> tuple[str, list[Candidate]]:
        said: list[dict[str, Any]] = []

        def heard(line: str) -> None:
            if line.startswith('{"slice": ') and len(said) < _MAX_LINES:
                said.append(json.loads(line))

        words = (self._origins.hf_endpoint, source.repository, source.revision, self._origins.hf_token_file)
        try:
            async with asyncio.timeout(_DEADLINE_S):
                with tempfile.TemporaryDirectory(dir=self._scratch, prefix="hub-") as home:
                    await self._children.run(
                        (sys.executable, "-I", "-m", "node_agent.files.hub_list", *words),
                        environment=self._client_environment(home),
                        on_line=heard,
                    )
        except TimeoutError:
            said.clear()
        return _read(source, said)

    def _client_environment(self, home: str) -> dict[str, str]:
        kept = {name: value for name, value in self._environment.items() if name.upper() in _PROXIES}
        # Its own home: a token that the user once logged in with is not ours to use.
        ours = {"HOME": home, "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        return {**kept, **ours}


def _read(source: ModelSource, said: Sequence[Mapping[str, Any]]) -> tuple[str, list[Candidate]]:
    """Return the commit and the files that the child's lines tell of, those with names that cannot be ours left out.

    Raises:
        Failure: what the child says went wrong.
    """
    last = said[-1] if said else {}
    if last.get("slice") == "failure" and last.get("code") in CODES:
        raise Failure(str(last["code"]), str(last.get("message", "")), hint=str(last.get("hint", "")))
    commit = str(last.get("commit", ""))
    if not _COMMIT.match(commit):
        raise Failure(
            "source.unreachable",
            f"the hub gave no usable answer about {source.repository} within {_DEADLINE_S:g} s and 512 MiB",
            hint="check the network and hf_endpoint, then pull again",
        )
    if source.is_commit and source.revision != commit:
        raise Failure(
            "source.digest_mismatch",
            f"the hub answers with commit {commit}, expected {source.revision}",
            hint="the hub does not keep its history; check hf_endpoint",
        )
    return commit, [one for values in said if (one := _candidate(values)) is not None]


def _candidate(values: Mapping[str, Any]) -> Candidate | None:
    path, size = values.get("path"), values.get("size")
    if not isinstance(path, str) or not _PATH.match(path) or sendable(path) != path:
        return None
    if isinstance(size, int) and size > MAX_FILE_BYTES:
        raise Failure(
            "source.invalid", f"{path[:200]} is said to have more bytes than a file can have", hint="check hf_endpoint"
        )
    sha256, sha1 = str(values.get("sha256") or ""), str(values.get("git_sha1") or "")
    return Candidate(
        path=path,
        size_bytes=size if isinstance(size, int) and size >= 0 else None,
        sha256=sha256 if _SHA256.match(sha256) else "",
        git_sha1=sha1 if _COMMIT.match(sha1) else "",
    )
