package sqlstore_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta/metatest"
	"github.com/starlight-delta/starlight/proxyd/internal/meta/sqlstore"
)

func open(t *testing.T, dsn string) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSQLite(t *testing.T) {
	metatest.Run(t, func(t *testing.T) meta.Store { return open(t, filepath.Join(t.TempDir(), "proxyd.db")) })
}

func TestPostgres(t *testing.T) {
	server := metatest.Postgres(t)
	metatest.Run(t, func(t *testing.T) meta.Store { return open(t, server.Database(t)) })
	t.Run("ReplicasMigrateAtOnce", func(t *testing.T) { testMigrateAtOnce(t, server.Database(t)) })
	t.Run("LockAcrossReplicas", func(t *testing.T) { testLockAcrossReplicas(t, server.Database(t)) })
	t.Run("LockOfDeadConnection", func(t *testing.T) { testLockOfDeadConnection(t, server.Database(t)) })
	t.Run("NewerVersion", func(t *testing.T) {
		dsn := server.Database(t)
		testNewerVersion(t, dsn, "pgx", dsn)
	})
}

func TestSQLiteNewerVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	testNewerVersion(t, path, "sqlite", path)
}

func TestSQLiteReopen(t *testing.T) {
	// Characters that mean something in URLs.
	path := filepath.Join(t.TempDir(), "a b?c#d%20.db")
	s := open(t, path)
	if err := s.PutOrder(t.Context(), sha256.Sum256(nil), "static", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlstore.Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second Open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if _, err := s.Order(t.Context(), sha256.Sum256(nil), "static"); err != nil {
		t.Errorf("after reopening: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, dsn := range []string{
		"mysql://u:s3cret@h/db",
		"postgres://u:s3cret@h:port/db",
		"postgres://u:s3cret@127.0.0.1:1/db?connect_timeout=1",
		filepath.Join(t.TempDir(), "no", "such", "dir"),
	} {
		s, err := sqlstore.Open(t.Context(), dsn)
		if err == nil {
			t.Errorf("Open(%q) succeeded", dsn)
			_ = s.Close()
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("Open(%q): the error tells the password: %v", dsn, err)
		}
	}
}

func testMigrateAtOnce(t *testing.T, dsn string) {
	g, ctx := errgroup.WithContext(t.Context())
	for range 4 {
		g.Go(func() error {
			s, err := sqlstore.Open(ctx, dsn)
			if err != nil {
				return err
			}
			return s.Close()
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func testLockAcrossReplicas(t *testing.T, dsn string) {
	a, b := open(t, dsn), open(t, dsn)
	defer b.Close()
	unlock, err := a.Lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.Lock(ctx, "x"); err == nil {
		t.Error("two replicas hold the lock")
	}
	got := make(chan error, 1)
	go func() {
		unlock, err := b.Lock(t.Context(), "x")
		if err == nil {
			unlock()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func testLockOfDeadConnection(t *testing.T, dsn string) {
	a, b := open(t, dsn), open(t, dsn)
	defer a.Close()
	defer b.Close()
	unlock, err := a.Lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	admin, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if _, err := admin.ExecContext(t.Context(),
		`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); err != nil {
		t.Fatal(err)
	}
	unlockB, err := b.Lock(t.Context(), "x")
	if err != nil {
		t.Fatalf("lock of a dead session: %v", err)
	}
	unlockB()
	unlock() // must neither hang nor harm
	unlock, err = a.Lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// testNewerVersion: an old proxyd must not work on the tables of a newer one.
func testNewerVersion(t *testing.T, dsn, driver, driverDSN string) {
	if err := open(t, dsn).Close(); err != nil {
		t.Fatal(err)
	}
	if driver == "sqlite" {
		driverDSN = "file:" + url.PathEscape(driverDSN)
	}
	db, err := sql.Open(driver, driverDSN)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, true)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlstore.Open(t.Context(), dsn); err == nil || !strings.Contains(err.Error(), "999") {
		t.Errorf("Open of a newer database: %v", err)
	}
}
