package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Document implements meta.Store.
func (s *Store) Document(ctx context.Context, repo string, digest toc.Digest) (*meta.Document, error) {
	d := &meta.Document{Digest: digest}
	err := s.db.QueryRowContext(ctx,
		`SELECT r.media_type, d.bytes FROM repo_documents r JOIN documents d ON d.digest = r.digest
		WHERE r.repo = $1 AND r.digest = $2`, repo, digest[:]).Scan(&d.MediaType, &d.Bytes)
	if err != nil {
		return nil, found(err, "document %s@%s", repo, digest)
	}
	return d, nil
}

// PutDocument implements meta.Store.
func (s *Store) PutDocument(ctx context.Context, repo string, d *meta.Document) error {
	err := s.tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx,
			`INSERT INTO documents (digest, bytes) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING`,
			d.Digest[:], d.Bytes); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx,
			`INSERT INTO repo_documents (repo, digest, media_type) VALUES ($1, $2, $3)
			ON CONFLICT (repo, digest) DO UPDATE SET media_type = excluded.media_type`,
			repo, d.Digest[:], d.MediaType)
		return err
	})
	if err != nil {
		return fmt.Errorf("put document %s@%s: %w", repo, d.Digest, err)
	}
	return nil
}

// PutTag implements meta.Store.
func (s *Store) PutTag(ctx context.Context, t meta.Tag) error {
	if _, err := s.db.ExecContext(ctx,
		`INSERT INTO tags (repo, name, digest, seen) VALUES ($1, $2, $3, $4)
		ON CONFLICT (repo, name) DO UPDATE SET digest = excluded.digest, seen = excluded.seen`,
		t.Repo, t.Name, t.Digest[:], t.Seen.UnixMicro()); err != nil {
		return fmt.Errorf("put tag %s:%s: %w", t.Repo, t.Name, err)
	}
	return nil
}

// Tags implements meta.Store.
func (s *Store) Tags(ctx context.Context, repo string) ([]meta.Tag, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT name, digest, seen FROM tags WHERE repo = $1 ORDER BY name`, repo)
	if err != nil {
		return nil, fmt.Errorf("tags of %s: %w", repo, err)
	}
	defer rows.Close()
	var tags []meta.Tag
	for rows.Next() {
		t := meta.Tag{Repo: repo}
		var micro int64
		if err := rows.Scan(&t.Name, scanDigest{&t.Digest}, &micro); err != nil {
			return nil, fmt.Errorf("tags of %s: %w", repo, err)
		}
		t.Seen = time.UnixMicro(micro)
		tags = append(tags, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("tags of %s: %w", repo, err)
	}
	return tags, nil
}

// Order implements meta.Store.
func (s *Store) Order(ctx context.Context, manifest toc.Digest, kind string) ([]byte, error) {
	var b []byte
	err := s.db.QueryRowContext(ctx,
		`SELECT bytes FROM orders WHERE manifest = $1 AND kind = $2`, manifest[:], kind).Scan(&b)
	if err != nil {
		return nil, found(err, "%s order of %s", kind, manifest)
	}
	return b, nil
}

// PutOrder implements meta.Store.
func (s *Store) PutOrder(ctx context.Context, manifest toc.Digest, kind string, order []byte) error {
	if order == nil {
		order = []byte{} // not NULL
	}
	if _, err := s.db.ExecContext(ctx,
		`INSERT INTO orders (manifest, kind, bytes) VALUES ($1, $2, $3)
		ON CONFLICT (manifest, kind) DO UPDATE SET bytes = excluded.bytes`,
		manifest[:], kind, order); err != nil {
		return fmt.Errorf("put %s order of %s: %w", kind, manifest, err)
	}
	return nil
}
