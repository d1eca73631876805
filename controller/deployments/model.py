"""The values of deployments and replicas, as they stand in the tables; JSON columns are plain mappings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from adapters.contract import Runtime
from core.footprint import Footprint, Provenance
from core.states import DisabledAnswer


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What an operator wants.

    `generation` grows with every accepted change, `spec_generation` is the generation of the last change that asks for
    new replicas: scaling, disabling and enabling leave it alone, so that they restart nothing. `requires` are names of
    `adapters.contract.Capability`, `disabled_answer` is a `core.states.DisabledAnswer`.
    """

    deployment_id: str
    name: str
    version_id: str
    model: str
    version: int
    engine: str
    engine_version: str
    settings: Mapping[str, Any]
    replicas: int
    generation: int
    spec_generation: int
    footprint: Mapping[str, Any]
    requires: Sequence[str]
    is_enabled: bool
    disabled_answer: str
    is_deleting: bool
    created_at: datetime
    updated_at: datetime
    runtime: str = Runtime.PROCESS.value
    image: str = ""
    node_name: str = ""
    secret_name: str = ""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One running engine for a deployment on one node, mirrored from what the node reports.

    `version_id` and `version` say what it serves: its deployment may have gone on to another version. `stuck` says why
    nothing can take a leaving one's place (`code`, `message`, `hint`, `nodes`), empty when something can.
    """

    replica_id: str
    deployment_id: str
    version_id: str
    version: int
    spec_generation: int
    node_id: str
    engine: str
    engine_version: str
    settings: Mapping[str, Any]
    promises: Mapping[str, int]
    state: str
    desired: str
    incarnation: int
    restarts: int
    pid: int
    host: str
    port: int
    load_s: float
    code: str
    message: str
    log_tail: Sequence[str]
    created_at: datetime
    state_since: datetime
    drain_since: datetime | None
    base_url: str = ""
    runtime: str = Runtime.PROCESS.value
    image: str = ""
    is_leaving: bool = False
    move_to: str | None = None
    succeeds: str | None = None
    stuck: Mapping[str, Any] = field(default_factory=dict)
    move_since: datetime | None = None
    move_failure: Mapping[str, Any] = field(default_factory=dict)
    """Why its last move was given up (`code`, `message`, `hint`), empty when it was not."""


@dataclass(frozen=True, kw_only=True)
class RefusalRow:
    """Why a deployment has fewer replicas than it wants; `nodes` are `{"node", "reason"}`."""

    deployment_id: str
    code: str
    message: str
    hint: str
    nodes: Sequence[Mapping[str, str]]
    cured_by: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class NewDeployment:
    """A wish for a deployment; None means: choose for me.

    `image` is for containers, `secret_name` for external engines, `node_name` is the only node that may run it.
    """

    name: str | None
    model: str
    engine: str | None
    engine_version: str | None
    replicas: int
    settings: Mapping[str, Any]
    requires: Sequence[str] = ()
    is_enabled: bool = True
    disabled_answer: str = DisabledAnswer.UNAVAILABLE.value
    runtime: str | None = None
    image: str = ""
    node_name: str = ""
    secret_name: str = ""


@dataclass(frozen=True, kw_only=True)
class DeploymentChange:
    """A wish to change a deployment; None leaves the field, a setting given as None goes back to its default.

    `version` is another one of its model. The change is made only at generation `if_generation` or `resource_version`
    where one is given; they are the same number under two names.
    """

    replicas: int | None = None
    settings: Mapping[str, Any] | None = None
    version: int | None = None
    engine_version: str | None = None
    requires: Sequence[str] | None = None
    is_enabled: bool | None = None
    disabled_answer: str | None = None
    approve_template: str | None = None
    """SHA-256 of that version's chat template, where it differs from what production has."""
    if_generation: int | None = None
    resource_version: int | None = None


def footprint_json(footprint: Footprint) -> dict[str, Any]:
    """Return `footprint` as it is stored and shown."""
    return {
        "total_bytes": footprint.total_bytes,
        "provenance": footprint.provenance.value,
        "weights_bytes": footprint.weights_bytes,
        "kv_cache_bytes": footprint.kv_cache_bytes,
        "compute_bytes": footprint.compute_bytes,
        "overhead_bytes": footprint.overhead_bytes,
    }


def footprint_of(stored: Mapping[str, Any]) -> Footprint:
    """Return the footprint that `footprint_json` stored."""
    return Footprint(
        weights_bytes=int(stored["weights_bytes"]),
        kv_cache_bytes=int(stored["kv_cache_bytes"]),
        compute_bytes=int(stored["compute_bytes"]),
        overhead_bytes=int(stored["overhead_bytes"]),
        provenance=Provenance(stored["provenance"]),
    )
