package sqlstore

import (
	"context"
	"fmt"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Resolved implements meta.Store.
func (s *Store) Resolved(ctx context.Context, repo, tag, platform string) (m toc.Digest, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT manifest FROM resolved WHERE repo = $1 AND tag = $2 AND platform = $3`,
		repo, tag, platform).Scan(scanDigest{&m})
	if err != nil {
		return m, found(err, "%s:%s for %s", repo, tag, platform)
	}
	return m, nil
}

// PutResolved implements meta.Store.
func (s *Store) PutResolved(ctx context.Context, r meta.Resolved) error {
	if _, err := s.db.ExecContext(ctx,
		`INSERT INTO resolved (repo, tag, platform, manifest) VALUES ($1, $2, $3, $4)
		ON CONFLICT (repo, tag, platform) DO UPDATE SET manifest = excluded.manifest`,
		r.Repo, r.Tag, r.Platform, r.Manifest[:]); err != nil {
		return fmt.Errorf("put %s:%s for %s: %w", r.Repo, r.Tag, r.Platform, err)
	}
	return nil
}

// Patch implements meta.Store.
func (s *Store) Patch(ctx context.Context, from, to toc.Digest) (*meta.Patch, error) {
	p := &meta.Patch{Old: from, New: to}
	var micro int64
	err := s.db.QueryRowContext(ctx,
		`SELECT blob_key, size, used FROM patches WHERE old = $1 AND new = $2`, from[:], to[:]).Scan(&p.Key, &p.Size, &micro)
	if err != nil {
		return nil, found(err, "patch from %s to %s", from, to)
	}
	p.Used = time.UnixMicro(micro)
	return p, nil
}

// PutPatch implements meta.Store.
func (s *Store) PutPatch(ctx context.Context, p *meta.Patch) error {
	if _, err := s.db.ExecContext(ctx,
		`INSERT INTO patches (old, new, blob_key, size, used) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (old, new) DO UPDATE SET blob_key = excluded.blob_key, size = excluded.size, used = excluded.used`,
		p.Old[:], p.New[:], p.Key, p.Size, p.Used.UnixMicro()); err != nil {
		return fmt.Errorf("put patch from %s to %s: %w", p.Old, p.New, err)
	}
	return nil
}

// DeletePatch implements meta.Store.
func (s *Store) DeletePatch(ctx context.Context, from, to toc.Digest) error {
	if _, err := s.db.ExecContext(ctx, `DELETE FROM patches WHERE old = $1 AND new = $2`, from[:], to[:]); err != nil {
		return fmt.Errorf("delete patch from %s to %s: %w", from, to, err)
	}
	return nil
}

// PatchBytes implements meta.Store.
func (s *Store) PatchBytes(ctx context.Context) (n int64, err error) {
	if err := s.db.QueryRowContext(ctx, `SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM patches`).Scan(&n); err != nil {
		return 0, fmt.Errorf("size of the patches: %w", err)
	}
	return n, nil
}

// StalePatches implements meta.Store.
func (s *Store) StalePatches(ctx context.Context, n int) ([]meta.Patch, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT old, new, blob_key, size, used FROM patches ORDER BY used, old, new LIMIT $1`, n)
	if err != nil {
		return nil, fmt.Errorf("stale patches: %w", err)
	}
	defer rows.Close()
	var out []meta.Patch
	for rows.Next() {
		var p meta.Patch
		var micro int64
		if err := rows.Scan(scanDigest{&p.Old}, scanDigest{&p.New}, &p.Key, &p.Size, &micro); err != nil {
			return nil, fmt.Errorf("stale patches: %w", err)
		}
		p.Used = time.UnixMicro(micro)
		out = append(out, p)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("stale patches: %w", err)
	}
	return out, nil
}
