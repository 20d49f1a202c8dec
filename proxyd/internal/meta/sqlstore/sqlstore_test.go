package sqlstore_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
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
	t.Run("LargerPieces", func(t *testing.T) {
		dsn := server.Database(t)
		testLargerPieces(t, dsn, "pgx", dsn)
	})
	t.Run("NewerVersion", func(t *testing.T) {
		dsn := server.Database(t)
		testNewerVersion(t, dsn, "pgx", dsn)
	})
}

func TestSQLiteLargerPieces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	testLargerPieces(t, path, "sqlite", path)
}

// Of layers that were ingested with larger pieces nothing stays but the names of the files
// that are to be deleted.
func testLargerPieces(t *testing.T, dsn, driver, driverDSN string) {
	ctx := t.Context()
	s := open(t, dsn)
	l := &meta.Layer{DiffID: sha256.Sum256([]byte("layer")), TOCKey: "toc/a", PackKey: "pack/a"}
	b := &meta.LayerBlob{Digest: sha256.Sum256([]byte("blob")), Size: 1, DiffID: l.DiffID}
	img := &meta.Image{Repo: "r", Manifest: sha256.Sum256([]byte("m")), Layers: []meta.ImageLayer{{Blob: b.Digest, DiffID: l.DiffID}}}
	if err := errors.Join(s.PutLayer(ctx, l, b), s.PutImage(ctx, img), s.Close()); err != nil {
		t.Fatal(err)
	}
	execute(t, driver, driverDSN, "DELETE FROM goose_db_version WHERE version_id = 12")
	s = open(t, dsn)
	defer s.Close()
	if _, err := s.Layer(ctx, l.DiffID); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("the layer: got %v, want ErrNotFound", err)
	}
	if gone, err := s.RemovedLayers(ctx); err != nil || len(gone) != 1 || gone[0].PackKey != l.PackKey || gone[0].TOCKey != l.TOCKey {
		t.Errorf("files to delete: got %+v, %v", gone, err)
	}
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
	execute(t, driver, driverDSN, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, true)")
	if _, err := sqlstore.Open(t.Context(), dsn); err == nil || !strings.Contains(err.Error(), "999") {
		t.Errorf("Open of a newer database: %v", err)
	}
}

// execute runs a statement behind the back of a Store that is closed.
func execute(t *testing.T, driver, dsn, statement string) {
	t.Helper()
	if driver == "sqlite" {
		dsn = "file:" + url.PathEscape(dsn)
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
