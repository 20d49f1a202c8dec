package fsblob_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/blob/blobtest"
	"github.com/starlight-delta/starlight/proxyd/internal/blob/fsblob"
)

func open(t *testing.T, dir string) *fsblob.Store {
	t.Helper()
	s, err := fsblob.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store { return open(t, t.TempDir()) })
}

func TestNewSweepsWhatDeadProcessesLeft(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	w, err := s.Create(t.Context(), "alive")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, "tmp", "blob-stale")
	if err := os.WriteFile(stale, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir) // as another process would
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("stale temporary file: got %v, want not exist", err)
	}
	if err := w.Commit(); err != nil {
		t.Fatalf("commit of a blob that was being written during the sweep: %v", err)
	}
	if n, err := s.Stat(t.Context(), "alive"); err != nil || n != 1 {
		t.Errorf("Stat = %d, %v; want 1", n, err)
	}
	ents, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil || len(ents) != 0 {
		t.Errorf("temporary files left: %v, %v", ents, err)
	}
}
