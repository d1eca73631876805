"""The ledger's values: one event as it was written."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened; `seq` grows and orders all events of the cluster."""

    seq: int
    at: datetime
    kind: str
    subject_kind: str
    subject: str
    reason: str
    message: str
    data: Mapping[str, object]
