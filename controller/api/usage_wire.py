"""Usage rows off the wire: checked, since a door's word is no more than that. Pure; called by `routes_servicer`."""

import re
from datetime import UTC, datetime

from controller.usage.model import UsageRow
from core.errors import Failure
from core.states import Outcome
from protos.slice.routes.v1 import routes_pb2 as pb

MAX_ROWS = 1000
"""Most rows of one batch; doors send 500."""
_MAX_TEXT = 128
_MOST_TOKENS = 2**40
_MOST_US = 2**53
_ROW_ID = re.compile(r"[0-9A-Za-z_.-]{8,64}")
_TEXTS = (
    "request_id",
    "trace_id",
    "kid",
    "project",
    "public_name",
    "arm",
    "model",
    "deployment",
    "replica_id",
    "node_id",
    "endpoint",
    "code",
)


def rows_of(batch: pb.UsageBatch) -> list[UsageRow]:
    """Return the rows of `batch` that are some, each once; numbers and texts out of bounds are cut to them.

    Raises:
        Failure: `request.out_of_range`: too many rows.
    """
    if len(batch.rows) > MAX_ROWS:
        raise Failure("request.out_of_range", f"a batch holds at most {MAX_ROWS} rows, not {len(batch.rows)}")
    door_id = _text(batch.door_id)
    return list({row.row_id: row for one in batch.rows if (row := _row(one, door_id)) is not None}.values())


def _row(row: pb.UsageRow, door_id: str) -> UsageRow | None:
    """Return one row, None when it has no usable id, no outcome that we know, or no instant."""
    if _ROW_ID.fullmatch(row.row_id) is None or row.outcome not in set(Outcome):
        return None
    try:
        started_at = datetime.fromtimestamp(row.started_unix_us / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return UsageRow(
        row_id=row.row_id,
        door_id=door_id,
        version=min(row.version, 2**31 - 1),
        is_stream=row.is_stream,
        outcome=Outcome(row.outcome),
        status=row.status if row.status < 600 else 0,
        input_tokens=min(row.input_tokens, _MOST_TOKENS),
        output_tokens=min(row.output_tokens, _MOST_TOKENS),
        cached_tokens=min(row.cached_tokens, _MOST_TOKENS),
        is_estimated=row.is_estimated,
        started_at=started_at,
        first_byte_s=min(row.first_byte_us, _MOST_US) / 1e6 if row.first_byte_us else None,
        total_s=min(row.total_us, _MOST_US) / 1e6,
        attempts=min(row.attempts, 1000),
        **{name: _text(getattr(row, name)) for name in _TEXTS},
    )


def _text(text: str) -> str:
    # PostgreSQL's texts hold no NUL.
    return text[:_MAX_TEXT].replace("\0", "?")
