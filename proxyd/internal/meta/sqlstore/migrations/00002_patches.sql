-- +goose Up
CREATE TABLE patches (
    old      BYTEA  NOT NULL,
    new      BYTEA  NOT NULL,
    blob_key TEXT   NOT NULL,
    size     BIGINT NOT NULL,
    used     BIGINT NOT NULL, -- Unix, microseconds
    PRIMARY KEY (old, new)
);
CREATE INDEX patches_used ON patches (used);

CREATE TABLE resolved (
    repo     TEXT  NOT NULL,
    tag      TEXT  NOT NULL,
    platform TEXT  NOT NULL,
    manifest BYTEA NOT NULL,
    PRIMARY KEY (repo, tag, platform)
);

-- +goose Down
DROP TABLE resolved;
DROP TABLE patches;
