"""The registry's values, as they stand in the tables; JSON columns are plain mappings."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Model:
    """A name people ask for."""

    model_id: str
    name: str
    is_deleting: bool
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Version:
    """One immutable version of a model; `facts` are `adapters.contract.ModelFacts` as JSON."""

    version_id: str
    model_id: str
    number: int
    digest: str
    source: str
    format: str
    size_bytes: int
    chat_template_sha256: str
    facts: Mapping[str, object]
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a version; position 0 is the model itself."""

    version_id: str
    position: int
    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class FilePlace:
    """Which node's store holds a file's content."""

    sha256: str
    node_id: str
    node_name: str


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A stable public name that stands for a model."""

    name: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Bringing one file into a node's store and registering the version."""

    pull_id: str
    model_name: str
    source: str
    node_id: str | None
    state: str
    bytes_done: int
    bytes_total: int
    code: str
    message: str
    hint: str
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class NewVersion:
    """What is written when a version is registered."""

    digest: str
    source: str
    path: str
    sha256: str | None
    format: str
    size_bytes: int
    chat_template_sha256: str
    facts: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class CatalogueOfModels:
    """All models with their versions, files and places, read in one snapshot."""

    models: tuple[Model, ...]
    versions: tuple[Version, ...]
    files: tuple[File, ...]
    places: tuple[FilePlace, ...]
    aliases: tuple[Alias, ...]
