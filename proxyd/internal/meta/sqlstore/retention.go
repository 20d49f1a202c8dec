package sqlstore

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// TouchLayers implements meta.Store.
func (s *Store) TouchLayers(ctx context.Context, diffIDs []toc.Digest, at time.Time) error {
	// In the same order as every other caller, so that they do not wait for each other
	// in a circle.
	diffIDs = slices.SortedFunc(slices.Values(diffIDs), func(a, b toc.Digest) int { return bytes.Compare(a[:], b[:]) })
	err := s.tx(ctx, func(tx *sql.Tx) error {
		for _, d := range diffIDs {
			if _, err := tx.ExecContext(ctx, `UPDATE layers SET used = $2 WHERE diff_id = $1 AND used < $2`, d[:], at.UnixMicro()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note the use of layers: %w", err)
	}
	return nil
}

// LayerUses implements meta.Store.
func (s *Store) LayerUses(ctx context.Context) ([]meta.LayerUse, error) {
	uses, err := query(ctx, s.db, `SELECT diff_id, toc_key, pack_key, used FROM layers ORDER BY used, diff_id`,
		func(rows *sql.Rows) (u meta.LayerUse, err error) {
			var micro int64
			err = rows.Scan(scanDigest{&u.DiffID}, &u.TOCKey, &u.PackKey, &micro)
			u.Used = time.UnixMicro(micro)
			return u, err
		})
	if err != nil {
		return nil, fmt.Errorf("uses of layers: %w", err)
	}
	at := make(map[toc.Digest]*meta.LayerUse, len(uses))
	for i := range uses {
		at[uses[i].DiffID] = &uses[i]
	}
	type pair struct{ layer, manifest toc.Digest }
	pairs, err := query(ctx, s.db, `SELECT DISTINCT diff_id, manifest FROM image_layers ORDER BY diff_id, manifest`,
		func(rows *sql.Rows) (p pair, err error) {
			err = rows.Scan(scanDigest{&p.layer}, scanDigest{&p.manifest})
			return p, err
		})
	if err != nil {
		return nil, fmt.Errorf("images of layers: %w", err)
	}
	for _, p := range pairs {
		if u := at[p.layer]; u != nil {
			u.Manifests = append(u.Manifests, p.manifest)
		}
	}
	return uses, nil
}

// RemoveLayer implements meta.Store.
func (s *Store) RemoveLayer(ctx context.Context, diffID toc.Digest, since time.Time) (removed bool, err error) {
	err = s.tx(ctx, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx,
			`INSERT INTO removed_layers (diff_id, toc_key, pack_key)
			SELECT diff_id, toc_key, pack_key FROM layers WHERE diff_id = $1 AND used < $2
			ON CONFLICT (diff_id) DO NOTHING`, diffID[:], since.UnixMicro())
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return err
		}
		removed = true
		return deleteLayer(ctx, tx, diffID)
	})
	if err != nil {
		return false, fmt.Errorf("remove layer %s: %w", diffID, err)
	}
	return removed, nil
}

// RemovedLayers implements meta.Store.
func (s *Store) RemovedLayers(ctx context.Context) ([]meta.LayerUse, error) {
	out, err := query(ctx, s.db, `SELECT diff_id, toc_key, pack_key FROM removed_layers ORDER BY diff_id`,
		func(rows *sql.Rows) (u meta.LayerUse, err error) {
			err = rows.Scan(scanDigest{&u.DiffID}, &u.TOCKey, &u.PackKey)
			return u, err
		})
	if err != nil {
		return nil, fmt.Errorf("removed layers: %w", err)
	}
	return out, nil
}

// ForgetRemoved implements meta.Store.
func (s *Store) ForgetRemoved(ctx context.Context, diffID toc.Digest) error {
	if _, err := s.db.ExecContext(ctx, `DELETE FROM removed_layers WHERE diff_id = $1`, diffID[:]); err != nil {
		return fmt.Errorf("forget layer %s: %w", diffID, err)
	}
	return nil
}

// query returns what scan makes of each row.
func query[T any](ctx context.Context, db *sql.DB, text string, scan func(*sql.Rows) (T, error)) (out []T, err error) {
	rows, err := db.QueryContext(ctx, text)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}
