"""A blueprint: models, aliases and deployments of a cluster as one value, and what changes between two of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from core.states import DisabledAnswer, Stage

_ADOPTED = "adopted:"
FORMAT = 1
"""Number of the file's form; a file with a higher one was written by a newer release."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version; in a file `number` is only what the file's other parts call it by, the content is the `digest`.

    One of the cluster knows by which sources it was `asked` for: that is how a source finds it that pins nothing.
    `approve_template` is the SHA-256 of its chat template, approved for production ("" : not).
    """

    number: int
    source: str
    digest: str = ""
    stage: Stage | None = None
    approve_template: str = ""
    asked: tuple[str, ...] = field(default=(), compare=False)
    line: int = field(default=0, compare=False)

    @property
    def is_adopted(self) -> bool:
        """Whether it is an adopted engine's own: it comes and goes with that engine, and no file speaks of it."""
        return self.source.startswith(_ADOPTED)


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model with its versions, oldest first."""

    name: str
    versions: tuple[Version, ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Alias:
    """One alias of a model, or of one version of it; `approve_template` is that of the version in the file."""

    name: str
    model: str
    number: int | None = None
    approve_template: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One deployment; None leaves what is there, or chooses as a new deployment without it would.

    `settings` are those that differ from the engine's defaults: one that is absent has its default. `secret` is a name,
    never a value: a file holds no secret.
    """

    name: str
    model: str
    number: int | None = None
    approve_template: str = field(default="", compare=False)
    engine: str | None = None
    engine_version: str | None = None
    replicas: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    is_enabled: bool = True
    disabled_answer: str = DisabledAnswer.UNAVAILABLE.value
    runtime: str | None = None
    image: str | None = None
    node: str | None = None
    secret: str | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A whole file, or a whole cluster; a section that is None is not spoken of."""

    models: tuple[Model, ...] | None = None
    aliases: tuple[Alias, ...] | None = None
    deployments: tuple[Deployment, ...] | None = None


class Action(StrEnum):
    """What happens to a thing."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class Kind(StrEnum):
    """Kinds of things that a blueprint holds."""

    MODEL = "model"
    VERSION = "version"
    DEPLOYMENT = "deployment"
    ALIAS = "alias"


class Way(StrEnum):
    """How a version that is missing comes."""

    COPY = "copy"  # its content is here, under another model
    BUILTIN = "builtin"  # it has no file
    PULL = "pull"  # a node has to bring it


@dataclass(frozen=True, kw_only=True)
class FieldChange:
    """One field that gets another value; None is absent."""

    name: str
    before: Any = None
    after: Any = None


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing to create, update or delete; `is_waiting` says that a version must be pulled before it can be done.

    `wanted` is the thing as the blueprint has it, with numbers of versions as the cluster counts them.
    """

    action: Action
    kind: Kind
    name: str
    fields: tuple[FieldChange, ...] = ()
    is_waiting: bool = False
    way: Way | None = None
    model: str = ""
    number: int | None = None
    wanted: Version | Alias | Deployment | None = None
    line: int = 0
