// Package sqlstore keeps proxyd's metadata in SQLite or Postgres: the same
// queries and the same tables for both.
package sqlstore

import (
	"context"
	"errors"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
)

// Open opens a database and brings its tables up to date. dsn is a
// postgres:// or postgresql:// URL, or the path of an SQLite file, which is
// created if it is not there.
func Open(ctx context.Context, dsn string) (meta.Store, error) {
	return nil, errors.New("under construction")
}
