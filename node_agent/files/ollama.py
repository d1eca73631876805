"""Models of an Ollama registry: from a source to the blobs that its manifest names.

Comes in: an `ollama:` source. Goes out: a `Manifest`: the model's GGUF first, then template, parameters, system prompt
and licences as files below `ollama/`. Called by `node_agent.files.arrivals`. The registry speaks Docker's protocol, v2;
names and media types are those of Ollama's own client (its `server/images.go` and `types/model/name.go`), and like its
client (`server/internal/client/ollama/registry.go`) we find a manifest of a digest among the blobs.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import Failure
from core.ids import Sha256
from core.sources import ModelSource, ollama_manifest_text, ollama_text
from node_agent.files.download import Downloader
from node_agent.files.manifest import Item, Manifest
from node_agent.files.origins import SourceOrigins
from node_agent.files.reach import Reach, origin_of
from node_agent.files.transfer import MAX_FILE_BYTES, Remote

_MANIFEST_MAX_BYTES = 1024**2
_MAX_LAYERS = 64
_TYPE = re.compile(r"\Aapplication/vnd\.ollama\.image\.([a-z]+)\Z")
_DIGEST = re.compile(r"\Asha256:([0-9a-f]{64})\Z")
_TEXTS = frozenset({"template", "params", "system", "license", "messages", "prompt"})
_UNSERVED = frozenset({"projector", "adapter", "tensor", "embed"})


class OllamaRegistry:
    """Asks the registry that a source names, or the configured one."""

    def __init__(self, *, origins: SourceOrigins, reach: Reach, downloader: Downloader) -> None:
        self._origins = origins
        self._reach = reach
        self._downloader = downloader

    async def manifest(self, source: ModelSource) -> Manifest:
        """Return what `source` means; a blob that is named by its digest needs no manifest.

        What one manifest names in several files is pinned by that manifest: the digest of the model's own blob would
        name nothing but this blob.

        Raises:
            Failure: `source.*`.
        """
        if source.file_sha256:
            blob = self._item(source, "model", _model_path(source), source.file_sha256, None)
            return Manifest(items=(blob,), resolved=source.text)
        body, sha256 = await self._manifest_body(source)
        layers = read_layers(source, body)
        items: list[Item] = []
        counts: dict[str, int] = {}
        for kind, digest, size in layers:
            counts[kind] = counts.get(kind, 0) + 1
            number = f"-{counts[kind]}" if counts[kind] > 1 else ""
            path = _model_path(source) if kind == "model" else f"ollama/{kind}{number}"
            items.append(self._item(source, kind, path, digest, size))
        is_alone = len(items) == 1
        resolved = ollama_text(source, layers[0][1]) if is_alone else ollama_manifest_text(source, sha256)
        return Manifest(items=tuple(items), resolved=resolved)

    async def _manifest_body(self, source: ModelSource) -> tuple[bytes, Sha256]:
        """Return the manifest and its digest: the tag's, or, where another one is pinned, that from among the blobs."""
        wanted = source.manifest_sha256
        for rest in (f"manifests/{_tag(source)}", f"blobs/sha256:{wanted}"):
            name = f"the manifest of {source.text[7:200]}"
            try:
                body = await self._downloader.read(Remote(name=name, url=self._url(source, rest)), _MANIFEST_MAX_BYTES)
            except Failure as failure:
                if wanted is None or failure.code != "source.not_found":
                    raise
                continue
            sha256 = Sha256(hashlib.sha256(body).hexdigest())
            if wanted in (None, sha256):
                return body, sha256
        raise Failure(
            "source.digest_mismatch",
            f"{source.text[:200]}: its tag has another manifest by now, and the registry has not kept this one",
            hint="pull the tag without #manifest=... to take what it means today",
        )

    def _item(self, source: ModelSource, kind: str, path: str, digest: Sha256, size: int | None) -> Item:
        return Item(
            path=path,
            source=ollama_text(source, digest),
            size_bytes=size,
            sha256=digest,
            remote=Remote(
                name=f"the {kind} of {source.repository}",
                url=self._url(source, f"blobs/sha256:{digest}"),
                size_bytes=size,
                sha256=digest,
            ),
        )

    def _url(self, source: ModelSource, rest: str) -> str:
        repository = source.repository if "/" in source.repository else f"library/{source.repository}"
        path = f"v2/{repository}/{rest}"
        if source.host:
            return self._reach.url_of(source.host, path)
        endpoint = self._origins.ollama_registry.rstrip("/")
        origin_of(endpoint)
        return f"{endpoint}/{path}"


def _tag(source: ModelSource) -> str:
    return source.revision or "latest"


def _model_path(source: ModelSource) -> str:
    return f"{source.repository.rsplit('/', 1)[-1]}.gguf"


def read_layers(source: ModelSource, body: bytes) -> Sequence[tuple[str, Sha256, int]]:
    """Return kind, digest and bytes of each layer that is wanted, the model's first.

    Raises:
        Failure: `source.invalid` for what is no manifest, `source.unsupported` for a model that is more than one GGUF.
    """
    found: list[tuple[str, Sha256, int]] = []
    try:
        layers = json.loads(body)["layers"]
        if not isinstance(layers, list) or len(layers) > _MAX_LAYERS:
            raise TypeError
        for layer in layers:
            found.append(_layer(layer))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Failure(
            "source.invalid",
            f"{source.text[:200]} leads to no manifest of a model",
            hint="check the name; the registry has to be one that Ollama pulls from",
        ) from None
    kinds = [kind for kind, _, _ in found]
    if unserved := sorted(_UNSERVED & set(kinds)):
        raise Failure(
            "source.unsupported",
            f"{source.text[:200]} has a layer of kind {unserved[0]}, which is not served from this source",
            hint="choose a model of text alone, or pull its safetensors from a hub",
        )
    if kinds.count("model") != 1:
        raise Failure(
            "source.unsupported",
            f"{source.text[:200]} has {kinds.count('model')} model layers, exactly one is taken",
            hint="cloud models and models in several layers are not stored on a node",
        )
    return sorted((layer for layer in found if layer[0] in _TEXTS | {"model"}), key=lambda layer: layer[0] != "model")


def _layer(layer: Mapping[str, Any]) -> tuple[str, Sha256, int]:
    kind, digest = _TYPE.match(str(layer["mediaType"])), _DIGEST.match(str(layer["digest"]))
    size = layer["size"]
    if digest is None or isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
        raise ValueError
    return kind[1] if kind else "", Sha256(digest[1]), size
