package sqlstore

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Image implements meta.Store.
func (s *Store) Image(ctx context.Context, repo string, manifest toc.Digest) (*meta.Image, error) {
	// One query, so that an image that is being deleted is seen whole or not at all.
	rows, err := s.db.QueryContext(ctx,
		`SELECT i.config, l.blob, l.diff_id FROM images i
		LEFT JOIN image_layers l ON l.repo = i.repo AND l.manifest = i.manifest
		WHERE i.repo = $1 AND i.manifest = $2 ORDER BY l.position`, repo, manifest[:])
	if err != nil {
		return nil, fmt.Errorf("image %s@%s: %w", repo, manifest, err)
	}
	defer rows.Close()
	var img *meta.Image
	for rows.Next() {
		if img == nil {
			img = &meta.Image{Repo: repo, Manifest: manifest}
		}
		var l meta.ImageLayer
		if err := rows.Scan(scanDigest{&img.Config}, scanDigest{&l.Blob}, scanDigest{&l.DiffID}); err != nil {
			return nil, fmt.Errorf("image %s@%s: %w", repo, manifest, err)
		}
		if !l.Blob.IsZero() {
			img.Layers = append(img.Layers, l)
		}
	}
	err = rows.Err()
	if err == nil && img == nil {
		err = meta.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("image %s@%s: %w", repo, manifest, err)
	}
	return img, nil
}

// PutImage implements meta.Store.
func (s *Store) PutImage(ctx context.Context, img *meta.Image) error {
	err := s.tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx,
			`INSERT INTO images (repo, manifest, config) VALUES ($1, $2, $3)
			ON CONFLICT (repo, manifest) DO UPDATE SET config = excluded.config`,
			img.Repo, img.Manifest[:], img.Config[:]); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx,
			`DELETE FROM image_layers WHERE repo = $1 AND manifest = $2`, img.Repo, img.Manifest[:]); err != nil {
			return err
		}
		for i, l := range img.Layers {
			// Takes nothing from a layer that is not there, or is of another blob.
			res, err := tx.ExecContext(ctx,
				`INSERT INTO image_layers (repo, manifest, position, blob, diff_id)
				SELECT $1, $2, $3, digest, diff_id FROM layer_blobs WHERE digest = $4 AND diff_id = $5`,
				img.Repo, img.Manifest[:], i, l.Blob[:], l.DiffID[:])
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); err != nil {
				return err
			} else if n != 1 {
				return fmt.Errorf("layer %s of blob %s: %w", l.DiffID, l.Blob, meta.ErrNotFound)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("put image %s@%s: %w", img.Repo, img.Manifest, err)
	}
	return nil
}
