"""What the brain answers: starts, stops, refusals and what is stuck, as frozen values.

`scheduler.plan.plan` makes them; the controller commits them in one transaction and shows the refusals. Nothing here
acts or decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from core.ids import DeploymentId, DeviceId, NodeId, ReplicaId


@dataclass(frozen=True, kw_only=True)
class Start:
    """A replica to be: `promises` are the bytes of each of the node's devices that it is given.

    `succeeds` is the leaving replica whose place it takes, None when one was missing.
    """

    deployment_id: DeploymentId
    generation: int
    node_id: NodeId
    promises: Mapping[DeviceId, int]
    reason: str
    succeeds: ReplicaId | None = None


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A replica that is no longer wanted."""

    replica_id: ReplicaId
    reason: str


@dataclass(frozen=True, kw_only=True)
class NodeReason:
    """Why one node cannot take a replica, as half a sentence that follows the node's name."""

    node_id: NodeId
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a deployment has fewer replicas than it wants, and the kinds of events that could cure it.

    `code` stands in `core.errors.CODES`; `message` is one sentence that is shown to people who wait.
    """

    deployment_id: DeploymentId
    code: str
    message: str
    hint: str
    nodes: tuple[NodeReason, ...]
    cured_by: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Stuck:
    """A leaving replica that stays, because nothing can take its place: `refusal` says why."""

    replica_id: ReplicaId
    refusal: Refusal


@dataclass(frozen=True, kw_only=True)
class GivenUp:
    """A replica whose move has ended without a successor: it stays; `successor` is the one that could not run, if any.

    The message of `refusal` says why, and its code is one of moves.
    """

    replica_id: ReplicaId
    successor: ReplicaId | None
    refusal: Refusal


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What should change; `wake_at` asks for another look at an instant, `notes` are sentences for the log."""

    starts: tuple[Start, ...]
    stops: tuple[Stop, ...]
    refusals: tuple[Refusal, ...]
    wake_at: datetime | None
    notes: tuple[str, ...] = ()
    stuck: tuple[Stuck, ...] = ()
    given_up: tuple[GivenUp, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be started or stopped."""
        return not self.starts and not self.stops
