-- The types are those of Postgres; SQLite takes them by their affinity and
-- stores bytes, integers and text as they come.

-- +goose Up
CREATE TABLE layers (
    diff_id  BYTEA  NOT NULL PRIMARY KEY,
    toc      BYTEA  NOT NULL,
    toc_key  TEXT   NOT NULL,
    pack_key TEXT   NOT NULL,
    entries  BIGINT NOT NULL,
    objects  BIGINT NOT NULL,
    bytes    BIGINT NOT NULL
);

CREATE TABLE layer_blobs (
    digest  BYTEA  NOT NULL PRIMARY KEY,
    size    BIGINT NOT NULL,
    diff_id BYTEA  NOT NULL REFERENCES layers (diff_id) ON DELETE CASCADE
);
CREATE INDEX layer_blobs_diff_id ON layer_blobs (diff_id);

CREATE TABLE images (
    repo     TEXT  NOT NULL,
    manifest BYTEA NOT NULL,
    config   BYTEA NOT NULL,
    PRIMARY KEY (repo, manifest)
);

CREATE TABLE image_layers (
    repo     TEXT   NOT NULL,
    manifest BYTEA  NOT NULL,
    position BIGINT NOT NULL,
    blob     BYTEA  NOT NULL REFERENCES layer_blobs (digest),
    diff_id  BYTEA  NOT NULL,
    PRIMARY KEY (repo, manifest, position),
    FOREIGN KEY (repo, manifest) REFERENCES images (repo, manifest) ON DELETE CASCADE
);
CREATE INDEX image_layers_diff_id ON image_layers (diff_id);
CREATE INDEX image_layers_blob ON image_layers (blob);

CREATE TABLE documents (
    digest BYTEA NOT NULL PRIMARY KEY,
    bytes  BYTEA NOT NULL
);

-- The media type is the one this repository gave: another one must not be able
-- to change it.
CREATE TABLE repo_documents (
    repo       TEXT  NOT NULL,
    digest     BYTEA NOT NULL REFERENCES documents (digest) ON DELETE CASCADE,
    media_type TEXT  NOT NULL,
    PRIMARY KEY (repo, digest)
);
CREATE INDEX repo_documents_digest ON repo_documents (digest);

CREATE TABLE tags (
    repo   TEXT   NOT NULL,
    name   TEXT   NOT NULL,
    digest BYTEA  NOT NULL,
    seen   BIGINT NOT NULL, -- Unix, microseconds
    PRIMARY KEY (repo, name)
);

CREATE TABLE orders (
    manifest BYTEA NOT NULL,
    kind     TEXT  NOT NULL,
    bytes    BYTEA NOT NULL,
    PRIMARY KEY (manifest, kind)
);

-- +goose Down
DROP TABLE orders;
DROP TABLE tags;
DROP TABLE repo_documents;
DROP TABLE documents;
DROP TABLE image_layers;
DROP TABLE images;
DROP TABLE layer_blobs;
DROP TABLE layers;
