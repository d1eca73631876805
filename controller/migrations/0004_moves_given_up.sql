-- Moves that end by themselves when their successor cannot run. Only adds: the previous release goes on with it.

ALTER TABLE controller.replica
    -- When an operator last named a node for it to move to, NULL while it does not move.
    ADD COLUMN move_since timestamptz,
    -- Why its last move was given up: code, message and hint, empty when it was not.
    ADD COLUMN move_failure jsonb NOT NULL DEFAULT '{}';
