-- One row per request at the front door. Only adds: the previous release goes on with it.

CREATE TABLE controller.usage (
    -- Made by the door: a row that comes twice is one row.
    row_id text PRIMARY KEY CHECK (length(row_id) BETWEEN 8 AND 64),
    door_id text NOT NULL,
    request_id text NOT NULL,
    trace_id text NOT NULL DEFAULT '',
    -- Names, not references: usage outlives what it was of.
    kid text NOT NULL DEFAULT '',
    project text NOT NULL DEFAULT '',
    public_name text NOT NULL DEFAULT '',
    arm text NOT NULL DEFAULT '',
    model text NOT NULL DEFAULT '',
    version integer NOT NULL DEFAULT 0 CHECK (version >= 0),
    deployment text NOT NULL DEFAULT '',
    replica_id text NOT NULL DEFAULT '',
    node_id text NOT NULL DEFAULT '',
    endpoint text NOT NULL DEFAULT '',
    is_stream boolean NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('answered', 'refused', 'failed', 'cut', 'gone')),
    code text NOT NULL DEFAULT '',
    status integer NOT NULL CHECK (status BETWEEN 0 AND 599),
    input_tokens bigint NOT NULL CHECK (input_tokens >= 0),
    output_tokens bigint NOT NULL CHECK (output_tokens >= 0),
    cached_tokens bigint NOT NULL CHECK (cached_tokens >= 0),
    is_estimated boolean NOT NULL,
    started_at timestamptz NOT NULL,
    -- From its arrival; NULL when the answer had no first byte.
    first_byte_s double precision CHECK (first_byte_s >= 0),
    total_s double precision NOT NULL CHECK (total_s >= 0),
    attempts integer NOT NULL CHECK (attempts >= 0)
);
-- Rows come in the order of time, so that blocks of them are found by their range alone.
CREATE INDEX usage_by_time ON controller.usage USING brin (started_at);
