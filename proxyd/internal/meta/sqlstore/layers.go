package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Layer implements meta.Store.
func (s *Store) Layer(ctx context.Context, diffID toc.Digest) (*meta.Layer, error) {
	l := &meta.Layer{DiffID: diffID}
	err := s.db.QueryRowContext(ctx,
		`SELECT toc, toc_key, pack_key, entries, objects, bytes FROM layers WHERE diff_id = $1`, diffID[:]).
		Scan(scanDigest{&l.TOC}, &l.TOCKey, &l.PackKey, &l.Entries, &l.Objects, &l.Bytes)
	if err != nil {
		return nil, found(err, "layer %s", diffID)
	}
	return l, nil
}

// LayerBlob implements meta.Store.
func (s *Store) LayerBlob(ctx context.Context, blob toc.Digest) (*meta.LayerBlob, error) {
	b := &meta.LayerBlob{Digest: blob}
	err := s.db.QueryRowContext(ctx,
		`SELECT size, diff_id FROM layer_blobs WHERE digest = $1`, blob[:]).
		Scan(&b.Size, scanDigest{&b.DiffID})
	if err != nil {
		return nil, found(err, "blob %s", blob)
	}
	return b, nil
}

// PutLayer implements meta.Store.
func (s *Store) PutLayer(ctx context.Context, l *meta.Layer, b *meta.LayerBlob) error {
	if b.DiffID != l.DiffID {
		return fmt.Errorf("put layer %s: its blob is of %s", l.DiffID, b.DiffID)
	}
	err := s.tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx,
			`INSERT INTO layers (diff_id, toc, toc_key, pack_key, entries, objects, bytes, used)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (diff_id) DO UPDATE SET toc = excluded.toc, toc_key = excluded.toc_key,
				pack_key = excluded.pack_key, entries = excluded.entries,
				objects = excluded.objects, bytes = excluded.bytes, used = excluded.used`,
			l.DiffID[:], l.TOC[:], l.TOCKey, l.PackKey, l.Entries, l.Objects, l.Bytes, time.Now().UnixMicro()); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM removed_layers WHERE diff_id = $1`, l.DiffID[:]); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx,
			`INSERT INTO layer_blobs (digest, size, diff_id) VALUES ($1, $2, $3)
			ON CONFLICT (digest) DO UPDATE SET size = excluded.size, diff_id = excluded.diff_id`,
			b.Digest[:], b.Size, b.DiffID[:])
		return err
	})
	if err != nil {
		return fmt.Errorf("put layer %s: %w", l.DiffID, err)
	}
	return nil
}

// DeleteLayer implements meta.Store.
func (s *Store) DeleteLayer(ctx context.Context, diffID toc.Digest) error {
	err := s.tx(ctx, func(tx *sql.Tx) error { return deleteLayer(ctx, tx, diffID) })
	if err != nil {
		return fmt.Errorf("delete layer %s: %w", diffID, err)
	}
	return nil
}

func deleteLayer(ctx context.Context, tx *sql.Tx, diffID toc.Digest) error {
	if _, err := tx.ExecContext(ctx,
		`DELETE FROM images WHERE EXISTS (SELECT 1 FROM image_layers l
		WHERE l.repo = images.repo AND l.manifest = images.manifest AND l.diff_id = $1)`, diffID[:]); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM layers WHERE diff_id = $1`, diffID[:])
	return err
}

// scanDigest reads a digest column.
type scanDigest struct{ d *toc.Digest }

// Scan implements sql.Scanner. NULL is the zero digest.
func (s scanDigest) Scan(v any) error {
	if v == nil {
		*s.d = toc.Digest{}
		return nil
	}
	b, ok := v.([]byte)
	if !ok || len(b) != len(s.d) {
		return fmt.Errorf("a digest column holds a %T of %d bytes", v, len(b))
	}
	copy(s.d[:], b)
	return nil
}
