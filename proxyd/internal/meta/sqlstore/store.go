// Package sqlstore keeps proxyd's metadata in SQLite or Postgres: the same
// queries and the same tables for both.
package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/pressly/goose/v3"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is a meta.Store in a database.
type Store struct {
	db *sql.DB
	// lock takes a lock that other processes see too.
	lock func(ctx context.Context, name string) (unlock func(), err error)
	// local keeps this process from asking for a lock that it holds itself.
	local keyLock
	close func() error
}

var _ meta.Store = (*Store)(nil)

// Open opens a database and brings its tables up to date. dsn is a
// postgres:// or postgresql:// URL, or the path of an SQLite file, which is
// created if it is not there. An SQLite file serves one process at a time.
func Open(ctx context.Context, dsn string) (*Store, error) {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		return openPostgres(ctx, dsn)
	}
	if strings.Contains(dsn, "://") {
		return nil, errors.New("database URL: the scheme is not postgres")
	}
	return openSQLite(ctx, dsn)
}

// migrate brings the tables up to date.
func migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect, opts ...goose.ProviderOption) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(dialect, db, sub, opts...)
	if err != nil {
		return fmt.Errorf("database migrations: %w", err)
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("database version: %w", err)
	}
	if current > target {
		return fmt.Errorf("the database has version %d, this proxyd knows up to %d", current, target)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate database: %w", err)
	}
	return nil
}

// Lock implements meta.Store.
func (s *Store) Lock(ctx context.Context, name string) (func(), error) {
	unlockLocal, err := s.local.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	unlock, err := s.lock(ctx, name)
	if err != nil {
		unlockLocal()
		return nil, fmt.Errorf("lock %q: %w", name, err)
	}
	return func() {
		unlock()
		unlockLocal()
	}, nil
}

// Ping implements meta.Store.
func (s *Store) Ping(ctx context.Context) error { return s.db.PingContext(ctx) }

// Close implements meta.Store.
func (s *Store) Close() error { return errors.Join(s.db.Close(), s.close()) }

// tx runs f in a transaction.
func (s *Store) tx(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		if rerr := tx.Rollback(); rerr != nil && !errors.Is(rerr, sql.ErrTxDone) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	return tx.Commit()
}

// found gives errors of lookups their class and says what was looked up.
func found(err error, what string, args ...any) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = meta.ErrNotFound
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(what, args...), err)
}
