package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// PutTraces implements meta.Store.
func (s *Store) PutTraces(ctx context.Context, manifest toc.Digest, traces []meta.Trace, limits meta.TraceLimits) error {
	err := s.tx(ctx, func(tx *sql.Tx) error {
		for _, t := range traces {
			if _, err := tx.ExecContext(ctx,
				`INSERT INTO traces (manifest, id, reporter, received, bytes) VALUES ($1, $2, $3, $4, $5)
				ON CONFLICT (manifest, id) DO UPDATE SET reporter = excluded.reporter, received = excluded.received, bytes = excluded.bytes`,
				manifest[:], t.ID, t.Reporter, t.Received.UnixMicro(), t.Bytes); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx,
			`DELETE FROM traces WHERE manifest = $1 AND id IN (SELECT id FROM
				(SELECT id, ROW_NUMBER() OVER (PARTITION BY reporter ORDER BY received DESC, id) AS n
				FROM traces WHERE manifest = $1) AS r WHERE n > $2)`, manifest[:], limits.PerReporter); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx,
			`DELETE FROM traces WHERE manifest = $1 AND id IN (SELECT id FROM
				(SELECT id, ROW_NUMBER() OVER (ORDER BY received DESC, id) AS n
				FROM traces WHERE manifest = $1) AS r WHERE n > $2)`, manifest[:], limits.Total)
		return err
	})
	if err != nil {
		return fmt.Errorf("put traces of %s: %w", manifest, err)
	}
	return nil
}

// Traces implements meta.Store.
func (s *Store) Traces(ctx context.Context, manifest toc.Digest) ([]meta.Trace, error) {
	rows, err := s.db.QueryContext(ctx,
		`SELECT id, reporter, received, bytes FROM traces WHERE manifest = $1 ORDER BY received DESC, id`, manifest[:])
	if err != nil {
		return nil, fmt.Errorf("traces of %s: %w", manifest, err)
	}
	defer rows.Close()
	var traces []meta.Trace
	for rows.Next() {
		var t meta.Trace
		var micro int64
		if err := rows.Scan(&t.ID, &t.Reporter, &micro, &t.Bytes); err != nil {
			return nil, fmt.Errorf("traces of %s: %w", manifest, err)
		}
		t.Received = time.UnixMicro(micro)
		traces = append(traces, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("traces of %s: %w", manifest, err)
	}
	return traces, nil
}

// PutProfile implements meta.Store.
func (s *Store) PutProfile(ctx context.Context, repo string, p *meta.Profile, keep int) error {
	err := s.tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx,
			`INSERT INTO profiles (repo, manifest, updated, bytes) VALUES ($1, $2, $3, $4)
			ON CONFLICT (repo, manifest) DO UPDATE SET updated = excluded.updated, bytes = excluded.bytes`,
			repo, p.Manifest[:], p.Updated.UnixMicro(), p.Bytes); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx,
			`DELETE FROM profiles WHERE repo = $1 AND manifest IN (SELECT manifest FROM
				(SELECT manifest, ROW_NUMBER() OVER (ORDER BY updated DESC, manifest) AS n
				FROM profiles WHERE repo = $1) AS r WHERE n > $2)`, repo, keep)
		return err
	})
	if err != nil {
		return fmt.Errorf("put profile of %s@%s: %w", repo, p.Manifest, err)
	}
	return nil
}

// Profiles implements meta.Store.
func (s *Store) Profiles(ctx context.Context, repo string) ([]meta.Profile, error) {
	rows, err := s.db.QueryContext(ctx,
		`SELECT manifest, updated, bytes FROM profiles WHERE repo = $1 ORDER BY updated DESC, manifest`, repo)
	if err != nil {
		return nil, fmt.Errorf("profiles of %s: %w", repo, err)
	}
	defer rows.Close()
	var profiles []meta.Profile
	for rows.Next() {
		var p meta.Profile
		var micro int64
		if err := rows.Scan(scanDigest{&p.Manifest}, &micro, &p.Bytes); err != nil {
			return nil, fmt.Errorf("profiles of %s: %w", repo, err)
		}
		p.Updated = time.UnixMicro(micro)
		profiles = append(profiles, p)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("profiles of %s: %w", repo, err)
	}
	return profiles, nil
}
