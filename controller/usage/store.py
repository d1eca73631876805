"""Usage's SQL. Called by `controller.usage.service` alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import LiteralString

from psycopg.types.json import Jsonb

from controller.usage.model import By, Sum, UsageRow
from core.infra import postgres

# One statement for a batch. A row that came before stays as it was; a door does not know the node of a replica on its
# own machine, so it is looked up while the replica is there.
_INSERT = """
INSERT INTO controller.usage (row_id, door_id, request_id, trace_id, kid, project, public_name, arm, model, version,
    deployment, replica_id, node_id, endpoint, is_stream, outcome, code, status, input_tokens, output_tokens,
    cached_tokens, is_estimated, started_at, first_byte_s, total_s, attempts)
SELECT row_id, door_id, request_id, trace_id, kid, project, public_name, arm, model, version, deployment, replica_id,
    coalesce(nullif(node_id, ''), (SELECT node_id FROM controller.replica WHERE replica_id = given.replica_id), ''),
    endpoint, is_stream, outcome, code, status, input_tokens, output_tokens, cached_tokens, is_estimated, started_at,
    first_byte_s, total_s, attempts
  FROM jsonb_to_recordset(%(rows)s) AS given (row_id text, door_id text, request_id text, trace_id text, kid text,
    project text, public_name text, arm text, model text, version int, deployment text, replica_id text, node_id text,
    endpoint text, is_stream boolean, outcome text, code text, status int, input_tokens bigint, output_tokens bigint,
    cached_tokens bigint, is_estimated boolean, started_at timestamptz, first_byte_s double precision,
    total_s double precision, attempts int)
    ON CONFLICT (row_id) DO NOTHING
"""
_SUMS = """
       count(*) AS requests,
       count(*) FILTER (WHERE outcome = 'answered') AS answered,
       count(*) FILTER (WHERE outcome = 'refused') AS refused,
       count(*) FILTER (WHERE outcome = 'failed') AS failed,
       count(*) FILTER (WHERE outcome = 'cut') AS cut,
       count(*) FILTER (WHERE outcome = 'gone') AS gone,
       coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
       coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
       coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
       count(*) FILTER (WHERE is_estimated) AS estimated,
       coalesce(sum(total_s), 0) AS total_s
  FROM controller.usage
"""
_WITHIN = " WHERE started_at >= %(since)s AND started_at < %(until)s GROUP BY 1, 2 "
_LARGEST_FIRST = " ORDER BY requests DESC, 1 LIMIT %(limit)s"
_QUERIES: Mapping[By, LiteralString] = {
    By.KEY: 'SELECT usage.kid AS "group", coalesce(api_key.name, usage.kid) AS name,'
    + _SUMS
    + "LEFT JOIN controller.api_key USING (kid)"
    + _WITHIN
    + _LARGEST_FIRST,
    By.PROJECT: 'SELECT project AS "group", project AS name,' + _SUMS + _WITHIN + _LARGEST_FIRST,
    By.MODEL: 'SELECT model AS "group", model AS name,' + _SUMS + _WITHIN + _LARGEST_FIRST,
    By.DEPLOYMENT: 'SELECT deployment AS "group", deployment AS name,' + _SUMS + _WITHIN + _LARGEST_FIRST,
    By.NODE: 'SELECT usage.node_id AS "group", coalesce(node.name, usage.node_id) AS name,'
    + _SUMS
    + "LEFT JOIN controller.node USING (node_id)"
    + _WITHIN
    + _LARGEST_FIRST,
    By.DAY: "SELECT to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS \"group\", "
    "to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS name," + _SUMS + _WITHIN + " ORDER BY 1 LIMIT %(limit)s",
}


async def insert(connection: postgres.Connection, rows: Sequence[UsageRow]) -> int:
    """Store `rows` and return how many of them are new."""
    texts = [{**asdict(row), "started_at": row.started_at.isoformat()} for row in rows]
    return await postgres.execute(connection, _INSERT, {"rows": Jsonb(texts)})


async def sums(connection: postgres.Connection, by: By, *, since: datetime, until: datetime, limit: int) -> list[Sum]:
    """Return the sums of the requests that began in [since, until); days in order, others with most requests first."""
    return await postgres.fetch_all(connection, Sum, _QUERIES[by], {"since": since, "until": until, "limit": limit})
