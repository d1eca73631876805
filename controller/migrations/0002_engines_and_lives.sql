-- Many engines, models of many files from anywhere, and their lives: stages, switches, installations, secrets.
-- Only adds: the previous release goes on with it.

-- A version may be a folder of files; each can be fetched alone, from a source in which everything is pinned.
ALTER TABLE controller.file ADD COLUMN source text NOT NULL DEFAULT '';

ALTER TABLE controller.version
    ADD COLUMN chat_template text NOT NULL DEFAULT '',
    ADD COLUMN template_findings jsonb NOT NULL DEFAULT '[]',
    -- Sources, as somebody wrote them, whose pulls turned out to be this version.
    ADD COLUMN asked_sources jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN stage text NOT NULL DEFAULT 'candidate'
        CHECK (stage IN ('candidate', 'staging', 'production', 'retired'));

-- Deleted by force while deployed: hidden, and gone for good when its last replica is.
ALTER TABLE controller.version ADD COLUMN is_deleting boolean NOT NULL DEFAULT false;
-- The highest number of a version that was deleted: numbers never come back.
ALTER TABLE controller.model ADD COLUMN last_number integer NOT NULL DEFAULT 0 CHECK (last_number >= 0);

-- Of which version a replica is: its deployment may have gone on to another. NULL: of its deployment's.
ALTER TABLE controller.replica ADD COLUMN version_id text REFERENCES controller.version ON DELETE RESTRICT;
UPDATE controller.replica SET version_id = deployment.version_id
  FROM controller.deployment WHERE deployment.deployment_id = replica.deployment_id;
CREATE INDEX replica_by_version ON controller.replica (version_id);

CREATE TABLE controller.stage_event (
    -- Every move of a version between stages, kept when the version is gone; hence no foreign key.
    seq bigserial PRIMARY KEY,
    version_id text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    from_stage text NOT NULL,
    to_stage text NOT NULL,
    reason text NOT NULL DEFAULT '',
    -- Of which model the version is, and what its chat template was: what was in production stays approved.
    model_id text NOT NULL,
    chat_template_sha256 text NOT NULL,
    -- The template that this very move approved, '' where nothing had to be.
    approved_template text NOT NULL DEFAULT '' CHECK (approved_template IN ('', chat_template_sha256)),
    CHECK (from_stage <> to_stage)
);
CREATE INDEX stage_event_by_model ON controller.stage_event (model_id, seq);
CREATE INDEX stage_event_by_version ON controller.stage_event (version_id, seq);

-- An alias may stand for one version of a model; without one it follows the newest deployment, as before.
ALTER TABLE controller.alias ADD COLUMN version_id text REFERENCES controller.version ON DELETE CASCADE;

-- Grows with every change of the thing: what `resource_version` in requests is compared with.
ALTER TABLE controller.model ADD COLUMN resource_version bigint NOT NULL DEFAULT 1 CHECK (resource_version >= 1);
ALTER TABLE controller.alias ADD COLUMN resource_version bigint NOT NULL DEFAULT 1 CHECK (resource_version >= 1);

ALTER TABLE controller.deployment
    ADD COLUMN is_enabled boolean NOT NULL DEFAULT true,
    -- What the front door answers while it is disabled.
    ADD COLUMN disabled_answer text NOT NULL DEFAULT 'unavailable'
        CHECK (disabled_answer IN ('not_found', 'unavailable')),
    ADD COLUMN runtime text NOT NULL DEFAULT 'process' CHECK (runtime IN ('process', 'container', 'external')),
    ADD COLUMN image text NOT NULL DEFAULT '',
    -- Names of adapters.contract.Capability that its engine must have.
    ADD COLUMN requires jsonb NOT NULL DEFAULT '[]',
    -- The only node that may run it, '' for any.
    ADD COLUMN node_name text NOT NULL DEFAULT '',
    -- The secret that is sent to an external engine, '' for none.
    ADD COLUMN secret_name text NOT NULL DEFAULT '',
    -- Only an image is run by digest, and only containers have one.
    ADD CHECK ((runtime = 'container') = (image <> ''));

-- Where an external engine is; '' when the replica's host and port say it.
ALTER TABLE controller.replica
    ADD COLUMN base_url text NOT NULL DEFAULT '',
    ADD COLUMN runtime text NOT NULL DEFAULT 'process' CHECK (runtime IN ('process', 'container', 'external')),
    ADD COLUMN image text NOT NULL DEFAULT '';

CREATE TABLE controller.secret (
    -- Keys of external engines: AES-256-GCM under a key that lies outside the database; the name is authenticated too.
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$'),
    nonce bytea NOT NULL CHECK (length(nonce) = 12),
    ciphertext bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE controller.engine_want (
    -- A version of an engine that an operator wants on, or off, a node.
    node_id text NOT NULL REFERENCES controller.node ON DELETE CASCADE,
    engine text NOT NULL,
    version text NOT NULL,
    -- Of a binary: where it comes from, with its digest.
    source text NOT NULL DEFAULT '',
    is_removed boolean NOT NULL DEFAULT false,
    -- Not '': the engine that runs at this address of the node is read, nothing is installed.
    adopt_url text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (node_id, engine, version)
);

CREATE TABLE controller.engine_default (
    -- The version that new deployments of an engine get; `previous` is what `rollback` returns to.
    engine text PRIMARY KEY,
    version text NOT NULL,
    previous text NOT NULL DEFAULT '',
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE controller.file_removal (
    -- Content to be taken out of a node's store; gone when the node no longer reports it.
    node_id text NOT NULL REFERENCES controller.node ON DELETE CASCADE,
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (node_id, sha256)
);

-- The engine that a pull is for, '' for any: it decides which formats are brought.
ALTER TABLE controller.pull ADD COLUMN engine text NOT NULL DEFAULT '';

ALTER TABLE controller.node_file
    ADD COLUMN size_bytes bigint NOT NULL DEFAULT 0 CHECK (size_bytes >= 0),
    -- When a replica last used it on that node, by the node's clock.
    ADD COLUMN used_at timestamptz NOT NULL DEFAULT now();

CREATE TABLE controller.idempotency (
    -- Answers that were given under an Idempotency-Key; kept for a day.
    key text PRIMARY KEY CHECK (length(key) BETWEEN 1 AND 255),
    -- SHA-256 of method, path and body: the same key with another request is refused.
    request_sha256 text NOT NULL,
    -- 0 while the first request is at work; then the answer's HTTP status.
    status integer NOT NULL DEFAULT 0,
    answer jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_by_age ON controller.idempotency (created_at);

-- Commits follow the order of seq, else a slow transaction could commit a smaller seq after a reader has passed it. The
-- lock that orders them is taken as the transaction commits, when it waits for nothing any more: taken with its first
-- event, it would be held while the transaction goes on to wait for rows whose holders wait for that lock.
CREATE FUNCTION controller.number_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('slice-events'));
    UPDATE controller.event SET seq = nextval(pg_get_serial_sequence('controller.event', 'seq')) WHERE seq = NEW.seq;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER event_numbered AFTER INSERT ON controller.event
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION controller.number_event();
