"""The ledger's SQL: append and read events. Called by `controller.ledger.service` alone."""

from psycopg.types.json import Jsonb

from controller.ledger.model import Event
from core.events import Happening
from core.infra import postgres

# Each event gets the seq that it keeps at commit, in the order of commits: the schema's trigger `event_numbered`.
_INSERT = """
INSERT INTO controller.event (kind, subject_kind, subject, reason, message, data)
VALUES (%(kind)s, %(subject_kind)s, %(subject)s, %(reason)s, %(message)s, %(data)s)
"""
_SELECT = """
SELECT seq, at, kind, subject_kind, subject, reason, message, data
  FROM controller.event WHERE seq > %(after)s ORDER BY seq LIMIT %(limit)s
"""


async def insert(connection: postgres.Connection, happenings: tuple[Happening, ...]) -> None:
    """Append `happenings` in the transaction of `connection`."""
    for item in happenings:
        await postgres.execute(
            connection,
            _INSERT,
            {
                "kind": item.kind,
                "subject_kind": item.subject_kind.value,
                "subject": item.subject,
                "reason": item.reason,
                "message": item.message,
                "data": Jsonb(dict(item.data)),
            },
        )


async def select(connection: postgres.Connection, after: int, limit: int) -> list[Event]:
    """Return at most `limit` events whose seq is above `after`, oldest first."""
    return await postgres.fetch_all(connection, Event, _SELECT, {"after": after, "limit": limit})
