"""The SQL of answers kept under an Idempotency-Key. Called by `controller.api.idempotency` alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from core.infra import postgres

_FORGET = "DELETE FROM controller.idempotency WHERE created_at < now() - interval '1 day'"
# Invariant: of any number of requests with one key, in any number of processes, one insert wins.
_CLAIM = """
INSERT INTO controller.idempotency (key, request_sha256) VALUES (%(key)s, %(sha256)s) ON CONFLICT (key) DO NOTHING
"""
_KEPT = "SELECT request_sha256, status, answer FROM controller.idempotency WHERE key = %(key)s"
_KEEP = "UPDATE controller.idempotency SET status = %(status)s, answer = %(answer)s WHERE key = %(key)s AND status = 0"
_RELEASE = "DELETE FROM controller.idempotency WHERE key = %(key)s AND status = 0"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is known of a key: `status` 0 while its first request is at work, or was when its controller ended."""

    request_sha256: str
    status: int
    answer: Mapping[str, Any]


async def claimed(connection: postgres.Connection, key: str, sha256: str) -> Kept | None:
    """Claim `key` for a request, or return what is kept under it; what is older than a day is forgotten."""
    await postgres.execute(connection, _FORGET)
    if await postgres.execute(connection, _CLAIM, {"key": key, "sha256": sha256}):
        return None
    return await postgres.fetch_one(connection, Kept, _KEPT, {"key": key})


async def keep(connection: postgres.Connection, key: str, status: int, answer: Mapping[str, Any]) -> None:
    """Keep the answer of the request that claimed `key`."""
    await postgres.execute(connection, _KEEP, {"key": key, "status": status, "answer": Jsonb(dict(answer))})


async def release(connection: postgres.Connection, key: str) -> None:
    """Give up a claim whose request changed nothing."""
    await postgres.execute(connection, _RELEASE, {"key": key})
