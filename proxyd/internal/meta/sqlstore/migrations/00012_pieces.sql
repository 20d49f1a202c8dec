-- Pieces have become smaller: what was made of the old ones is made again when it is
-- asked for. Patches of before have keys that are no longer used, and go as the oldest.

-- +goose Up
INSERT INTO removed_layers (diff_id, toc_key, pack_key)
    SELECT diff_id, toc_key, pack_key FROM layers
    WHERE diff_id NOT IN (SELECT diff_id FROM removed_layers);
DELETE FROM images;
DELETE FROM layer_blobs;
DELETE FROM layers;
DELETE FROM traces;
DELETE FROM profiles;

-- +goose Down
DELETE FROM images;
DELETE FROM layer_blobs;
DELETE FROM layers;
DELETE FROM traces;
DELETE FROM profiles;
