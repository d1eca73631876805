-- The controller's own schema. Ids are text of core/ids.py, sizes are bytes as bigint, instants are timestamptz.
-- States are text with a check, not enum types, so that a newer release can add a word in a plain migration.

CREATE TABLE controller.leader (
    -- One row for ever: who may write decisions. The epoch grows with each reign and fences the writes of older ones.
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    holder text NOT NULL DEFAULT '',
    -- By the database's clock, never by a controller's.
    expires_at timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO controller.leader DEFAULT VALUES;

CREATE TABLE controller.project (
    project_id text PRIMARY KEY,
    name text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO controller.project (project_id, name) VALUES ('prj_default', 'default');

CREATE TABLE controller.api_key (
    kid text PRIMARY KEY,
    name text NOT NULL,
    project_id text NOT NULL REFERENCES controller.project,
    -- HMAC-SHA256(pepper, secret); the secret itself is never stored.
    digest bytea NOT NULL CHECK (length(digest) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
-- Two living keys never share a name; a revoked one gives its name free.
CREATE UNIQUE INDEX api_key_living_name ON controller.api_key (name) WHERE revoked_at IS NULL;

CREATE TABLE controller.model (
    model_id text PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$'),
    -- Deleted by force while deployed: hidden, and gone for good when its last replica is.
    is_deleting boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE controller.version (
    version_id text PRIMARY KEY,
    model_id text NOT NULL REFERENCES controller.model ON DELETE CASCADE,
    number integer NOT NULL CHECK (number >= 1),
    -- 'sha256:<hex>' of the model's file, or 'builtin:<name>' for one that needs no file.
    digest text NOT NULL CHECK (digest ~ '^(sha256:[0-9a-f]{64}|builtin:[a-z0-9._-]+)$'),
    source text NOT NULL,
    format text NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    chat_template_sha256 text NOT NULL DEFAULT '',
    -- adapters.contract.ModelFacts of the file's header, as JSON.
    facts jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (model_id, number),
    -- The same content is never two versions of one model.
    UNIQUE (model_id, digest)
);

CREATE TABLE controller.file (
    version_id text NOT NULL REFERENCES controller.version ON DELETE CASCADE,
    -- Position 0 is the file that the engine is pointed at.
    position integer NOT NULL CHECK (position >= 0),
    path text NOT NULL,
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    PRIMARY KEY (version_id, position)
);
CREATE INDEX file_by_digest ON controller.file (sha256);

CREATE TABLE controller.alias (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$'),
    model_id text NOT NULL REFERENCES controller.model ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE controller.node (
    -- Chosen by the node agent, kept in its data directory.
    node_id text PRIMARY KEY,
    name text NOT NULL UNIQUE,
    machine_id text NOT NULL,
    boot_id text NOT NULL,
    agent_version text NOT NULL,
    hostname text NOT NULL,
    system text NOT NULL,
    machine text NOT NULL,
    cpu_count integer NOT NULL CHECK (cpu_count >= 0),
    memory_bytes bigint NOT NULL CHECK (memory_bytes >= 0),
    disk_total_bytes bigint NOT NULL CHECK (disk_total_bytes >= 0),
    labels jsonb NOT NULL,
    engines jsonb NOT NULL,
    -- The last state that was recorded; the live one is in the controller's memory.
    state text NOT NULL CHECK (state IN ('ready', 'suspect', 'lost', 'offline')),
    is_cordoned boolean NOT NULL DEFAULT false,
    -- Grows with each accepted hello: messages of an older stream are refused.
    session_epoch bigint NOT NULL CHECK (session_epoch >= 1),
    -- Grows with each change of the desired set, whose content the digest names.
    generation bigint NOT NULL DEFAULT 0 CHECK (generation >= 0),
    desired_digest text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    session_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE controller.device (
    node_id text NOT NULL REFERENCES controller.node ON DELETE CASCADE,
    device_id text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    total_bytes bigint NOT NULL CHECK (total_bytes >= 0),
    is_simulated boolean NOT NULL,
    PRIMARY KEY (node_id, device_id)
);

CREATE TABLE controller.node_file (
    -- Which node's store holds which content; replaced by each whole report of the node.
    node_id text NOT NULL REFERENCES controller.node ON DELETE CASCADE,
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    PRIMARY KEY (node_id, sha256)
);

CREATE TABLE controller.pull (
    pull_id text PRIMARY KEY,
    model_name text NOT NULL,
    source text NOT NULL,
    node_id text REFERENCES controller.node ON DELETE SET NULL,
    state text NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    bytes_done bigint NOT NULL DEFAULT 0 CHECK (bytes_done >= 0),
    bytes_total bigint NOT NULL DEFAULT 0 CHECK (bytes_total >= 0),
    code text NOT NULL DEFAULT '',
    message text NOT NULL DEFAULT '',
    hint text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    -- A pull has an end exactly when it has ended.
    CHECK ((finished_at IS NULL) = (state IN ('queued', 'running'))),
    -- Only a failed pull has an error.
    CHECK ((code <> '') = (state = 'failed'))
);
-- The same thing is pulled once at a time.
CREATE UNIQUE INDEX pull_active ON controller.pull (model_name, source) WHERE finished_at IS NULL;
CREATE INDEX pull_by_age ON controller.pull (created_at);

CREATE TABLE controller.deployment (
    deployment_id text PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$'),
    -- Restricting: a version never vanishes under a deployment.
    version_id text NOT NULL REFERENCES controller.version ON DELETE RESTRICT,
    engine text NOT NULL,
    engine_version text NOT NULL,
    settings jsonb NOT NULL,
    replicas integer NOT NULL CHECK (replicas BETWEEN 0 AND 1000),
    -- Grows with every accepted change: the number that `if_generation` is compared with.
    generation bigint NOT NULL DEFAULT 1 CHECK (generation >= 1),
    -- The generation of the last change that asks for new replicas; scaling leaves it alone.
    spec_generation bigint NOT NULL DEFAULT 1 CHECK (spec_generation BETWEEN 1 AND generation),
    footprint jsonb NOT NULL,
    is_deleting boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX deployment_by_version ON controller.deployment (version_id);

CREATE TABLE controller.replica (
    replica_id text PRIMARY KEY,
    -- Restricting: a deployment's row outlives its last replica.
    deployment_id text NOT NULL REFERENCES controller.deployment ON DELETE RESTRICT,
    spec_generation bigint NOT NULL CHECK (spec_generation >= 1),
    node_id text NOT NULL REFERENCES controller.node ON DELETE RESTRICT,
    engine text NOT NULL,
    engine_version text NOT NULL,
    settings jsonb NOT NULL,
    -- Device id -> bytes that placement has given.
    promises jsonb NOT NULL,
    state text NOT NULL DEFAULT 'assigned' CHECK (state IN ('assigned', 'fetching', 'installing', 'starting', 'ready',
        'unhealthy', 'stopping', 'stopped', 'backoff', 'crash_loop', 'failed', 'lost')),
    desired text NOT NULL DEFAULT 'run' CHECK (desired IN ('run', 'drain', 'stop')),
    incarnation integer NOT NULL DEFAULT 0 CHECK (incarnation >= 0),
    restarts integer NOT NULL DEFAULT 0 CHECK (restarts >= 0),
    pid integer NOT NULL DEFAULT 0,
    host text NOT NULL DEFAULT '',
    port integer NOT NULL DEFAULT 0 CHECK (port BETWEEN 0 AND 65535),
    load_s double precision NOT NULL DEFAULT 0,
    code text NOT NULL DEFAULT '',
    message text NOT NULL DEFAULT '',
    log_tail jsonb NOT NULL DEFAULT '[]',
    created_at timestamptz NOT NULL DEFAULT now(),
    state_since timestamptz NOT NULL DEFAULT now(),
    drain_since timestamptz,
    -- Who is to go has an instant since when; who runs has none.
    CHECK ((drain_since IS NULL) = (desired = 'run')),
    -- A replica that serves has an address.
    CHECK (state <> 'ready' OR (host <> '' AND port > 0))
);
CREATE INDEX replica_by_deployment ON controller.replica (deployment_id);
CREATE INDEX replica_by_node ON controller.replica (node_id);

CREATE TABLE controller.replica_event (
    -- Every transition of every replica, kept when the replica is gone; hence no foreign key.
    seq bigserial PRIMARY KEY,
    replica_id text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    from_state text NOT NULL,
    to_state text NOT NULL,
    incarnation integer NOT NULL,
    code text NOT NULL DEFAULT '',
    message text NOT NULL DEFAULT ''
);
CREATE INDEX replica_event_by_replica ON controller.replica_event (replica_id, seq);

CREATE TABLE controller.refusal (
    -- Why a deployment has fewer replicas than it wants, as of the last plan.
    deployment_id text PRIMARY KEY REFERENCES controller.deployment ON DELETE CASCADE,
    code text NOT NULL,
    message text NOT NULL,
    hint text NOT NULL,
    nodes jsonb NOT NULL,
    cured_by jsonb NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE controller.event (
    -- Written under an advisory lock, so that a reader who has seen seq n never misses a smaller one.
    seq bigserial PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    kind text NOT NULL,
    subject_kind text NOT NULL,
    subject text NOT NULL,
    reason text NOT NULL DEFAULT '',
    message text NOT NULL,
    data jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX event_by_subject ON controller.event (subject_kind, subject, seq);
