package fsblob_test

import (
	"errors"
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

func TestDeleteBelow(t *testing.T) {
	s := open(t, t.TempDir())
	for _, key := range []string{"made/1/a/b", "made/1/c", "made/10/a", "made/2/a"} {
		if err := blob.Put(t.Context(), s, key, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"made/1", "never", "made/2/a/below-a-file"} {
		if err := s.DeleteBelow(key); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	for key, want := range map[string]bool{"made/1/a/b": false, "made/1/c": false, "made/10/a": true, "made/2/a": true} {
		if _, err := s.Stat(t.Context(), key); (err == nil) != want {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := s.DeleteBelow("../outside"); !errors.Is(err, blob.ErrKey) {
		t.Errorf("got %v for a key that leads outside", err)
	}
}
