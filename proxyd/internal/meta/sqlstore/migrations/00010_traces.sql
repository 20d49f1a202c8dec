-- +goose Up
CREATE TABLE traces (
    manifest BYTEA  NOT NULL,
    id       TEXT   NOT NULL,
    reporter TEXT   NOT NULL,
    received BIGINT NOT NULL, -- Unix, microseconds
    bytes    BYTEA  NOT NULL,
    PRIMARY KEY (manifest, id)
);

CREATE TABLE profiles (
    repo     TEXT   NOT NULL,
    manifest BYTEA  NOT NULL,
    updated  BIGINT NOT NULL, -- Unix, microseconds
    bytes    BYTEA  NOT NULL,
    PRIMARY KEY (repo, manifest)
);

-- +goose Down
DROP TABLE profiles;
DROP TABLE traces;
