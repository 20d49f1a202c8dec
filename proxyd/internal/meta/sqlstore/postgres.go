package sqlstore

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

const (
	// postgresConns stays well below the 100 connections that Postgres allows by
	// default, with room for replicas.
	postgresConns = 16
	// unlockTimeout: after it the connection is given up, and the lock with it.
	unlockTimeout = 10 * time.Second
)

func openPostgres(ctx context.Context, dsn string) (*Store, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		// The error of pgx can quote the URL, password and all.
		return nil, errors.New("database URL: malformed")
	}
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(postgresConns)
	db.SetMaxIdleConns(postgresConns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	// Replicas that start together migrate one after the other.
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := migrate(ctx, db, goose.DialectPostgres, goose.WithSessionLocker(locker)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	// A lock keeps its connection for as long as it is held. They have a pool of
	// their own, or those who hold locks could find no connection to work with.
	locks := stdlib.OpenDB(*cfg)
	locks.SetMaxIdleConns(2)
	return &Store{
		db: db,
		lock: func(ctx context.Context, name string) (func(), error) {
			return lockPostgres(ctx, locks, name)
		},
		close: locks.Close,
	}, nil
}

// lockPostgres takes an advisory lock of the session of a connection.
func lockPostgres(ctx context.Context, db *sql.DB, name string) (func(), error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte("starlight " + name))
	key := int64(binary.BigEndian.Uint64(sum[:]))
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", key); err != nil {
		// The lock may have been granted just before ctx ended.
		return nil, errors.Join(err, discard(conn))
	}
	ctx = context.WithoutCancel(ctx)
	return func() {
		ctx, cancel := context.WithTimeout(ctx, unlockTimeout)
		defer cancel()
		if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_unlock($1)", key); err != nil {
			_ = discard(conn) // ends the session, and with it the lock
			return
		}
		_ = conn.Close() // back to the pool
	}, nil
}

// discard closes a connection instead of giving it back to the pool.
func discard(conn *sql.Conn) error {
	err := conn.Raw(func(any) error { return driver.ErrBadConn })
	if err != nil && !errors.Is(err, driver.ErrBadConn) && !errors.Is(err, sql.ErrConnDone) {
		return fmt.Errorf("close connection: %w", err)
	}
	return nil
}
