"""The registry's values, as they stand in the tables; JSON columns are plain mappings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.exchange import VersionFile


@dataclass(frozen=True, kw_only=True)
class Model:
    """A name people ask for."""

    model_id: str
    name: str
    is_deleting: bool
    resource_version: int
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Version:
    """One immutable version of a model; `facts` are `adapters.contract.ModelFacts` as JSON.

    `asked_sources` are sources as they were asked for, whose pulls turned out to be this version.
    """

    version_id: str
    model_id: str
    number: int
    digest: str
    source: str
    format: str
    size_bytes: int
    chat_template_sha256: str
    facts: Mapping[str, object]
    template_findings: Sequence[str]
    stage: str
    is_deleting: bool
    created_at: datetime
    asked_sources: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Template:
    """The chat template of one version, "" when it has none, and what the linter said of it."""

    text: str
    sha256: str
    findings: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a version; position 0 is the model itself, `source` a pinned one of its own or ""."""

    version_id: str
    position: int
    path: str
    sha256: str
    size_bytes: int
    source: str


@dataclass(frozen=True, kw_only=True)
class FilePlace:
    """Which node's store holds a file's content."""

    sha256: str
    node_id: str
    node_name: str


@dataclass(frozen=True, kw_only=True)
class StoredPlace:
    """One content in one node's store, with the versions that have it, as `smollm2@v1`.

    `used_at` is when a replica last used it or when it was stored; `is_leaving` says that the node is to remove it, and
    `is_asked` that an operator wants it off this node whoever has it.
    """

    node_id: str
    node_name: str
    sha256: str
    size_bytes: int
    used_at: datetime
    is_leaving: bool
    versions: Sequence[str]
    is_asked: bool = False


@dataclass(frozen=True, kw_only=True)
class AdoptedHolder:
    """Which node's adopted engine has a model, where that engine answers, and what it calls the model."""

    sha256: str
    format: str
    node_name: str
    base_url: str
    remote_model: str


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A stable public name that stands for a model, or for one version of it (`version`, its number)."""

    name: str
    model: str
    version: int | None
    resource_version: int


@dataclass(frozen=True, kw_only=True)
class StageEvent:
    """One move of a version from one stage to another, with the chat template that it approved ("" : none)."""

    at: datetime
    from_stage: str
    to_stage: str
    reason: str
    approved_template: str


@dataclass(frozen=True, kw_only=True)
class Use:
    """A deployment or an alias that needs a version of a model; `number` is None for an alias of the whole model."""

    kind: str
    name: str
    number: int | None
    is_leaving: bool


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Bringing a version's files into a node's store and registering it; `engine` is whom it is for, "" for any."""

    pull_id: str
    model_name: str
    source: str
    engine: str
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
class Copy:
    """Bringing the files of a version that is registered into one node's store; of a move, `from_node` is whose store
    they leave when it is done.
    """

    copy_id: str
    version_id: str
    model: str
    version: int
    source: str
    node_id: str
    node_name: str
    from_node: str | None
    state: str
    code: str
    message: str
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Holding:
    """One content of a version as one node's store has it, or has it not (`is_here`); sizes in bytes.

    `is_elsewhere`: another node that is not lost holds it and is not to remove it. `users` are deployments whose
    replica on this node has it, `is_awaited` says that a copy brings it here, `sharers` are versions of other content
    that are whole here.
    """

    sha256: str
    size_bytes: int
    is_here: bool
    is_elsewhere: bool
    users: Sequence[str]
    is_awaited: bool
    sharers: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class NewVersion:
    """What is written when a version is registered."""

    digest: str
    source: str
    files: tuple[VersionFile, ...]
    format: str
    size_bytes: int
    facts: Mapping[str, object]
    chat_template_sha256: str = ""
    chat_template: str = ""
    template_findings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CatalogueOfModels:
    """All models with their versions, files and places, read in one snapshot."""

    models: tuple[Model, ...]
    versions: tuple[Version, ...]
    files: tuple[File, ...]
    places: tuple[FilePlace, ...]
    aliases: tuple[Alias, ...]
    holders: tuple[AdoptedHolder, ...] = ()
