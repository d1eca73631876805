"""A hub that speaks as much of Hugging Face's HTTP API as `huggingface_hub` asks of it to list and bring a model.

`/api/models/ORG/NAME[/revision/REV]?blobs=True` and `/ORG/NAME/resolve/COMMIT/PATH`. Files with weights are LFS files:
the listing has their SHA-256, and they come by a redirect to another path, as from the hub's object store.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from tests.fakes import web
from tests.fakes.web import Site, Thing


@dataclass
class Repository:
    """Commits and where the branches stand; `secret` gates the files, `is_private` the listing too."""

    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    secret: str = ""
    is_private: bool = False
    lies: dict[str, dict[str, object]] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add a commit, move the branch there and return its name."""
        digest = hashlib.sha1(
            repr(sorted((path, len(data), hashlib.sha1(data).hexdigest()) for path, data in files.items())).encode()
        )
        name = digest.hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name


class Hub:
    """Repositories on one site; `padding` makes every listing larger."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.repositories: dict[str, Repository] = {}
        self.padding = 0
        self.is_chunked = False
        self.redirect_listing = ""
        self.faults: dict[str, Thing] = {}
        site.answer = self._answer

    @property
    def url(self) -> str:
        return self.site.url

    def repository(self, name: str, **more: object) -> Repository:
        self.repositories[name] = Repository(name=name, **more)
        return self.repositories[name]

    def requests(self) -> int:
        return len(self.site.seen)

    def _answer(self, path: str, query: str) -> Thing | None:
        if path.startswith("/api/models/"):
            return self._listing(path.removeprefix("/api/models/"))
        found = path.strip("/").split("/", 4)
        if len(found) == 5 and found[2] == "resolve":
            return self._file("/".join(found[:2]), found[3], found[4])
        return self.faults.get(path)

    def _listing(self, rest: str) -> Thing:
        if self.redirect_listing:
            return Thing(location=self.redirect_listing)
        name, _, revision = rest.partition("/revision/")
        repository = self.repositories.get(unquote(name))
        if repository is None:
            return Thing(status=401, headers={"x-error-code": "RepoNotFound"})
        if repository.is_private and not self._is_known(repository):
            return Thing(status=401, headers={"x-error-code": "RepoNotFound"})
        commit = repository.branches.get(unquote(revision or "main"), unquote(revision))
        files = repository.commits.get(commit)
        if files is None:
            return Thing(status=404, headers={"x-error-code": "RevisionNotFound"})
        siblings = [self._sibling(repository, path, data) for path, data in sorted(files.items())]
        body = {"id": repository.name, "sha": commit, "siblings": siblings, "padding": "x" * self.padding}
        return Thing(
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
            etag="",
            is_chunked=self.is_chunked,
        )

    def _is_known(self, repository: Repository) -> bool:
        return self.site.seen[-1].authorization == f"Bearer {repository.secret}"

    def _sibling(self, repository: Repository, path: str, data: bytes) -> dict[str, object]:
        sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        sibling: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": sha1}
        if is_large(path):
            sha256 = hashlib.sha256(data).hexdigest()
            sibling["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
        lies = repository.lies.get(path, {})
        if "sha256" in lies:
            sibling["lfs"] = {"size": len(data), "sha256": lies["sha256"], "pointerSize": 134}
        return {**sibling, **{key: value for key, value in lies.items() if key != "sha256"}}

    def _file(self, name: str, revision: str, path: str) -> Thing:
        repository = self.repositories.get(name)
        commit = repository.branches.get(revision, revision) if repository else ""
        if repository is None or path not in repository.commits.get(commit, {}):
            return Thing(status=404, headers={"x-error-code": "EntryNotFound"})
        if repository.secret and not self._is_known(repository):
            return Thing(status=401, headers={"x-error-code": "GatedRepo"})
        data = repository.commits[commit][path]
        if not is_large(path):
            return self.faults.get(path) or Thing(data=data)
        blob = f"/blobs/{hashlib.sha256(data).hexdigest()}"
        self.site.things.setdefault(blob, self.faults.get(path) or Thing(data=data))
        return Thing(location=f"{self.url}{blob}?signature=1")


def is_large(path: str) -> bool:
    """Whether the hub keeps a file in LFS."""
    return path.endswith((".safetensors", ".gguf", ".bin", ".pt"))


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """Serve an empty `Hub`."""
    with web.site() as site:
        yield Hub(site)
