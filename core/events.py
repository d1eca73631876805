"""What happened, as a value: written once in the transaction that made it true, shown by `slice events`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Subject(StrEnum):
    """Kinds of things that events are about."""

    CLUSTER = "cluster"
    NODE = "node"
    JOIN_TOKEN = "join_token"  # noqa: S105 - a word, not one
    MODEL = "model"
    PULL = "pull"
    DEPLOYMENT = "deployment"
    REPLICA = "replica"
    KEY = "key"
    DOOR = "door"
    ENGINE = "engine"
    SECRET = "secret"  # noqa: S105 - a word, not one


@dataclass(frozen=True, kw_only=True)
class Happening:
    """One thing that happened: `kind` is a fixed word (`replica_ready`), `message` one sentence for people."""

    kind: str
    subject_kind: Subject
    subject: str
    message: str
    reason: str = ""
    data: Mapping[str, object] = field(default_factory=dict)
