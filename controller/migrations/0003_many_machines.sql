-- Many machines: who may join, with which certificate; nodes that wait, drain and are forgotten; replicas that move.
-- Only adds: the previous release goes on with it.

CREATE TABLE controller.join_token (
    token_id text PRIMARY KEY,
    -- SHA-256 of the secret, which has 256 bits of its own and is never stored.
    digest bytea NOT NULL CHECK (length(digest) = 32),
    labels jsonb NOT NULL DEFAULT '{}',
    -- The only name that may join with it, '' for any.
    node_name text NOT NULL DEFAULT '',
    -- Whether who joins with it may work at once.
    is_approving boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    used_at timestamptz,
    used_by_node text NOT NULL DEFAULT '',
    -- SHA-256 of the key it was used for: whoever lost the answer may ask once more, with that key alone.
    used_key bytea CHECK (length(used_key) = 32),
    -- It works once.
    CHECK ((used_at IS NULL) = (used_by_node = '')),
    CHECK ((used_at IS NULL) = (used_key IS NULL))
);

CREATE TABLE controller.certificate (
    -- Lower-case hexadecimal, as X.509 tools print it.
    serial text PRIMARY KEY CHECK (serial ~ '^[0-9a-f]+$'),
    role text NOT NULL CHECK (role IN ('controller', 'node', 'door')),
    subject text NOT NULL,
    issued_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX certificate_by_subject ON controller.certificate (role, subject);

ALTER TABLE controller.node
    -- One that waits holds a session and gets no work.
    ADD COLUMN is_approved boolean NOT NULL DEFAULT true,
    -- When it joined; NULL for the controller's own machine, whose node comes by the unix socket.
    ADD COLUMN joined_at timestamptz,
    -- Labels of its join token: they win over what the node says of itself.
    ADD COLUMN given_labels jsonb NOT NULL DEFAULT '{}',
    -- Set while everything is to leave it; one that drains is cordoned.
    ADD COLUMN drain_since timestamptz,
    -- What nothing can take the place of leaves it too.
    ADD COLUMN is_drain_forced boolean NOT NULL DEFAULT false,
    -- Where its data plane is reached from other machines, '' for the controller's own.
    ADD COLUMN plane_host text NOT NULL DEFAULT '',
    ADD COLUMN plane_port integer NOT NULL DEFAULT 0 CHECK (plane_port BETWEEN 0 AND 65535),
    ADD CHECK (drain_since IS NULL OR is_cordoned),
    ADD CHECK (NOT is_drain_forced OR drain_since IS NOT NULL),
    ADD CHECK ((plane_host = '') = (plane_port = 0));

ALTER TABLE controller.replica
    -- It serves until its successor does; then it is drained. Set by a move or by its node's drain.
    ADD COLUMN is_leaving boolean NOT NULL DEFAULT false,
    -- The only node that its successor may be placed on, NULL for any.
    ADD COLUMN move_to text REFERENCES controller.node ON DELETE SET NULL,
    -- The leaving replica that it was placed for, while that is there.
    ADD COLUMN succeeds text REFERENCES controller.replica ON DELETE SET NULL,
    -- Why nothing can take a leaving one's place: code, message, hint and nodes as in a refusal, empty when something can.
    ADD COLUMN stuck jsonb NOT NULL DEFAULT '{}',
    ADD CHECK (move_to IS NULL OR is_leaving),
    ADD CHECK (stuck = '{}' OR is_leaving);

CREATE TABLE controller.file_copy (
    -- A version that an operator wants in a node's store; done when all of its files are there.
    copy_id text PRIMARY KEY,
    version_id text NOT NULL REFERENCES controller.version ON DELETE CASCADE,
    node_id text NOT NULL REFERENCES controller.node ON DELETE CASCADE,
    -- Of a move: whose store they leave afterwards.
    from_node text REFERENCES controller.node ON DELETE SET NULL,
    state text NOT NULL CHECK (state IN ('queued', 'done', 'failed', 'cancelled')),
    code text NOT NULL DEFAULT '',
    message text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CHECK (from_node <> node_id),
    -- As of a pull: an end exactly when it has ended, an error exactly when it failed.
    CHECK ((finished_at IS NULL) = (state = 'queued')),
    CHECK ((code <> '') = (state = 'failed'))
);
CREATE UNIQUE INDEX file_copy_active ON controller.file_copy (version_id, node_id) WHERE finished_at IS NULL;
CREATE INDEX file_copy_by_age ON controller.file_copy (created_at);

ALTER TABLE controller.file_removal
    -- An operator wants the content off this node, though versions have it: another node holds it too.
    ADD COLUMN is_asked boolean NOT NULL DEFAULT false;
