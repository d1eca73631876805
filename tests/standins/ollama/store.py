"""Ollama's models folder: manifests by name, blobs by digest; names with all their defaults.

Source: ollama/ollama types/model/name.go, manifest/, server/images.go (PruneLayers) and server/create.go of 0.33.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from core.formats import gguf

DIGEST = re.compile(r"^sha256[:-]([0-9a-f]{64})\Z")
_PART = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")
_HOST = re.compile(r"^[A-Za-z0-9][A-Za-z0-9.:-]{0,349}\Z")
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
MODEL, PARAMS, TEMPLATE, SYSTEM = (
    f"application/vnd.ollama.image.{kind}" for kind in ("model", "params", "template", "system")
)


@dataclass(frozen=True)
class Name:
    """A whole name: host/namespace/model:tag."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def shortest(self) -> str:
        """What people are shown: without the default host and namespace, always with the tag."""
        if self.host != "registry.ollama.ai":
            return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"
        return (
            f"{self.model}:{self.tag}" if self.namespace == "library" else f"{self.namespace}/{self.model}:{self.tag}"
        )

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"


def parse_name(text: str) -> Name | None:
    """Return the name that `text` means, or None when it is none."""
    rest, slash, last = text.rpartition("/")
    model, _, tag = last.partition(":")
    parts = rest.split("/") if slash else []
    namespace = parts.pop() if parts else "library"
    host = parts.pop() if parts else "registry.ollama.ai"
    tag = tag or "latest"
    if parts or not all(_PART.match(part) for part in (namespace, model, tag)) or not _HOST.match(host):
        return None
    return Name(host, namespace, model, tag)


@dataclass(frozen=True)
class Model:
    """A manifest and the parts of its layers that matter."""

    name: Name
    digest: str  # of the manifest, hexadecimal
    path: Path  # of the GGUF
    size: int
    config: Mapping[str, object]
    parameters: Mapping[str, object]
    template: str
    system: str
    modified_at: datetime

    @property
    def details(self) -> dict[str, object]:
        return {
            "parent_model": "",
            "format": self.config["model_format"],
            "family": self.config["model_family"],
            "families": self.config["model_families"],
            "parameter_size": self.config["model_type"],
            "quantization_level": self.config["file_type"],
        }

    @property
    def capabilities(self) -> list[str]:
        if self.config["pooling"]:
            return ["embedding"]
        return ["completion", "tools"] if "tools" in self.template else ["completion"]


class Store:
    """The folder in OLLAMA_MODELS."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self._manifests = root / "manifests"
        self.blobs.mkdir(parents=True, exist_ok=True)

    def prune(self) -> None:
        """Remove every blob that no manifest names: what the server does at its start unless OLLAMA_NOPRUNE is set."""
        used = {layer for model in self._files() for layer in self._layers(json.loads(model.read_text()))}
        for blob in self.blobs.iterdir():
            if blob.name.replace("-", ":") not in used:
                blob.unlink()

    def blob(self, digest: str) -> Path:
        return self.blobs / digest.replace(":", "-")

    def receive(self, digest: str, stream: BinaryIO, length: int) -> bool:
        """Store an uploaded blob; False when its bytes have another digest."""
        found, partial = hashlib.sha256(), self.blobs / f"sha256-{id(stream)}.partial"
        with partial.open("wb") as file:
            while length > 0 and (piece := stream.read(min(length, 1 << 20))):
                found.update(piece)
                file.write(piece)
                length -= len(piece)
        if f"sha256:{found.hexdigest()}" != digest:
            partial.unlink()
            return False
        partial.rename(self.blob(digest))
        return True

    def write(self, data: bytes) -> tuple[str, int]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blob(digest).write_bytes(data)
        return digest, len(data)

    def models(self) -> list[Model]:
        """Return every model, newest first."""
        found = [model for file in self._files() if (model := self._read(file)) is not None]
        return sorted(found, key=lambda model: model.modified_at, reverse=True)

    def find(self, name: Name) -> Model | None:
        file = self._file(name)
        return self._read(file) if file.is_file() else None

    def create(self, name: Name, gguf_digest: str, texts: Mapping[str, str], parameters: Mapping[str, object]) -> None:
        """Write config and manifest for a GGUF blob.

        Raises:
            Failure: it is no GGUF.
        """
        blob = self.blob(gguf_digest)
        with blob.open("rb") as file:
            header = gguf.read_header(file, blob.stat().st_size)
        config = {
            "model_format": "gguf",
            "model_family": header.architecture,
            "model_families": [header.architecture],
            "model_type": _human(header.parameters),
            "file_type": header.quantization,
            "architecture": "amd64",
            "os": "linux",
        }
        layers = [(MODEL, gguf_digest, blob.stat().st_size)]
        layers += [(kind, *self.write(text.encode())) for kind, text in texts.items() if text]
        if parameters:
            layers.append((PARAMS, *self.write(json.dumps(parameters).encode())))
        config_digest, config_size = self.write(json.dumps(config).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": config_digest, "size": config_size},
            "layers": [{"mediaType": kind, "digest": digest, "size": size} for kind, digest, size in layers],
        }
        self._put(name, json.dumps(manifest))

    def copy(self, source: Model, destination: Name) -> None:
        self._put(destination, self._file(source.name).read_text())

    def delete(self, model: Model) -> None:
        """Remove the manifest, and the blobs that no other one names."""
        mine = set(self._layers(json.loads(self._file(model.name).read_text())))
        self._file(model.name).unlink()
        others = {layer for file in self._files() for layer in self._layers(json.loads(file.read_text()))}
        for digest in mine - others:
            self.blob(digest).unlink(missing_ok=True)

    def _put(self, name: Name, text: str) -> None:
        file = self._file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def _file(self, name: Name) -> Path:
        return self._manifests / name.host / name.namespace / name.model / name.tag

    def _files(self) -> Iterator[Path]:
        return (file for file in self._manifests.glob("*/*/*/*") if file.is_file())

    @staticmethod
    def _layers(manifest: Mapping) -> list[str]:
        return [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]

    def _read(self, file: Path) -> Model | None:
        raw = file.read_text()
        manifest = json.loads(raw)
        blobs = {layer["mediaType"]: self.blob(layer["digest"]) for layer in manifest["layers"]}
        texts = {kind: blobs[kind].read_text() for kind in (PARAMS, TEMPLATE, SYSTEM) if kind in blobs}
        config = json.loads(self.blob(manifest["config"]["digest"]).read_text())
        family = str(config["model_family"])
        with blobs[MODEL].open("rb") as stream:
            head = stream.read(1 << 20)
        host, namespace, model, tag = file.parts[-4:]
        return Model(
            name=Name(host, namespace, model, tag),
            digest=hashlib.sha256(raw.encode()).hexdigest(),
            path=blobs[MODEL],
            size=sum(layer["size"] for layer in manifest["layers"]) + manifest["config"]["size"],
            config={**config, "pooling": f"{family}.pooling_type".encode() in head},
            parameters=json.loads(texts.get(PARAMS, "{}")),
            template=texts.get(TEMPLATE, "") or _template(head),
            system=texts.get(SYSTEM, ""),
            modified_at=datetime.fromtimestamp(file.stat().st_mtime, UTC),
        )


def _template(head: bytes) -> str:
    """Return the chat template in a GGUF's first MiB: its key, type 8 (string), a length of 8 bytes, the text."""
    key = b"tokenizer.chat_template"
    start = head.find(key) + len(key) + 4
    if start < len(key) + 4:
        return ""
    length = int.from_bytes(head[start : start + 8], "little")
    return head[start + 8 : start + 8 + length].decode(errors="replace")


def _human(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.2f}".rstrip("0").rstrip(".") + unit if unit != "B" else f"{number / size:.1f}B"
    return str(number)
