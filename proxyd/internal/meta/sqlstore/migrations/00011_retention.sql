-- +goose Up
ALTER TABLE layers ADD COLUMN used BIGINT NOT NULL DEFAULT 0; -- Unix, microseconds

-- Layers whose files are still to be deleted.
CREATE TABLE removed_layers (
    diff_id  BYTEA NOT NULL PRIMARY KEY,
    toc_key  TEXT  NOT NULL,
    pack_key TEXT  NOT NULL
);

-- +goose Down
DROP TABLE removed_layers;
ALTER TABLE layers DROP COLUMN used;
