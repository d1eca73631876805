"""Usage's values: one row per request, and sums of rows."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from core.states import Outcome


class By(StrEnum):
    """What rows are summed up by."""

    KEY = "key"
    PROJECT = "project"
    MODEL = "model"
    DEPLOYMENT = "deployment"
    NODE = "node"
    DAY = "day"  # in UTC


@dataclass(frozen=True, kw_only=True)
class UsageRow:
    """One request that has ended; names and not references, since usage outlives what it was of.

    `status` is 0 when the client got none; `first_byte_s` and `total_s` count from the request's arrival;
    `is_estimated` says that the tokens were not told by the engine but counted from what was seen.
    """

    row_id: str
    door_id: str
    request_id: str
    trace_id: str
    kid: str
    project: str
    public_name: str
    arm: str
    model: str
    version: int
    deployment: str
    replica_id: str
    node_id: str
    endpoint: str
    is_stream: bool
    outcome: Outcome
    code: str
    status: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    is_estimated: bool
    started_at: datetime
    first_byte_s: float | None
    total_s: float
    attempts: int


@dataclass(frozen=True, kw_only=True)
class Sum:
    """The requests of one group: how they ended, and their tokens; `estimated` of them are counted and not told.

    `group` is what they have in common, "" where they have none; `name` is what people call that.
    """

    group: str
    name: str
    requests: int
    answered: int
    refused: int
    failed: int
    cut: int
    gone: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    estimated: int
    total_s: float
