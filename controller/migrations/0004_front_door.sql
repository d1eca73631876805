-- The front door: public names that are split between deployments, keys with limits, and one row of usage per request.
-- Only adds: the previous release goes on with it.

ALTER TABLE controller.api_key
    -- What a key may do at once and in a minute, NULL for as much as the cluster can.
    ADD COLUMN max_concurrent integer CHECK (max_concurrent >= 1),
    ADD COLUMN requests_per_minute integer CHECK (requests_per_minute >= 1),
    -- Its share where keys wait for each other.
    ADD COLUMN weight integer NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 100),
    -- Versions of which stage it is served by, '' for whichever its route names.
    ADD COLUMN stage text NOT NULL DEFAULT '' CHECK (stage IN ('', 'candidate', 'staging', 'production', 'retired')),
    -- Public names that it may ask for; none means all.
    ADD COLUMN models text[] NOT NULL DEFAULT '{}';

CREATE TABLE controller.route (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$'),
    sticky text NOT NULL DEFAULT '' CHECK (sticky IN ('', 'key', 'user', 'session')),
    -- Which replica gets a prompt.
    affinity text NOT NULL DEFAULT '' CHECK (affinity IN ('', 'prefix')),
    -- Public names that are tried in turn when nothing of this one answers.
    fallbacks text[] NOT NULL DEFAULT '{}',
    -- An arm that is a canary gets no more requests when, of at least so many, more than this share failed or the
    -- middle of their first bytes came later.
    canary_min_requests integer NOT NULL DEFAULT 50 CHECK (canary_min_requests >= 1),
    canary_max_error_share double precision CHECK (canary_max_error_share BETWEEN 0 AND 1),
    canary_max_first_byte_ms integer CHECK (canary_max_first_byte_ms >= 1),
    resource_version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE controller.route_arm (
    name text NOT NULL REFERENCES controller.route ON DELETE CASCADE,
    position integer NOT NULL CHECK (position >= 0),
    model_id text NOT NULL REFERENCES controller.model ON DELETE CASCADE,
    -- One version of it, or NULL for whichever is served.
    version_id text REFERENCES controller.version ON DELETE CASCADE,
    weight integer NOT NULL CHECK (weight BETWEEN 0 AND 10000),
    is_canary boolean NOT NULL DEFAULT false,
    -- Set when it was rolled back by itself, with the figures that said so.
    rolled_back_at timestamptz,
    rolled_back_reason text NOT NULL DEFAULT '',
    PRIMARY KEY (name, position),
    CHECK ((rolled_back_at IS NULL) = (rolled_back_reason = ''))
);

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
