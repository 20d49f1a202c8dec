package trace

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

const (
	suffix = ".json"

	// What a store keeps at most. The oldest traces go first.
	maxTraces = 256
	maxBytes  = 64 << 20
)

// Store keeps traces until they are reported, as one file each. A trace that is
// lost in a power cut is no harm, so nothing is synced.
type Store struct {
	dir string
	mu  sync.Mutex // held while files are written or removed
}

// Open opens the store in dir, which is created if need be.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	s := &Store{dir: dir}
	left, err := filepath.Glob(filepath.Join(dir, ".tmp-*"))
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("traces: %w", err)
		}
	}
	return s, nil
}

// Put stores a trace under a new ID.
func (s *Store) Put(t *Trace) (err error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	t.ID = hex.EncodeToString(id[:])
	b, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := os.CreateTemp(s.dir, ".tmp-*")
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.path(t.ID))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("trace: %w", err), os.Remove(f.Name()))
	}
	return s.trim()
}

// trim removes the oldest files of more than the store keeps. s.mu is held.
func (s *Store) trim() error {
	files, err := s.files()
	if err != nil {
		return err
	}
	total := int64(0)
	for i, f := range files { // the newest first
		if total += f.Size(); i < maxTraces && total <= maxBytes {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("trace: %w", err)
		}
	}
	return nil
}

// files lists the files of the store, the newest first.
func (s *Store) files() ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	var files []fs.FileInfo
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) || !e.Type().IsRegular() || !isID(strings.TrimSuffix(e.Name(), suffix)) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // just removed
		}
		files = append(files, info)
	}
	slices.SortStableFunc(files, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	return files, nil
}

// IDs lists the traces, the oldest first.
func (s *Store) IDs() ([]string, error) {
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(files))
	for i, f := range files {
		ids[len(files)-1-i] = strings.TrimSuffix(f.Name(), suffix)
	}
	return ids, nil
}

// Get reads a trace.
func (s *Store) Get(id string) (*Trace, error) {
	if !isID(id) {
		return nil, fmt.Errorf("trace %q: %w", id, errdefs.ErrNotFound)
	}
	b, err := os.ReadFile(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("trace %s: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", id, err)
	}
	t := &Trace{}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("trace %s is damaged: %w: %w", id, err, errdefs.ErrDataLoss)
	}
	t.ID = id
	return t, nil
}

// All reads all traces, the oldest first. Damaged ones are removed.
func (s *Store) All() ([]*Trace, error) {
	ids, err := s.IDs()
	if err != nil {
		return nil, err
	}
	var out []*Trace
	for _, id := range ids {
		t, err := s.Get(id)
		switch {
		case errdefs.IsDataLoss(err):
			if err := s.Delete(id); err != nil {
				return nil, err
			}
		case errdefs.IsNotFound(err):
		case err != nil:
			return nil, err
		default:
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, func(a, b *Trace) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Delete removes traces; those that are not there are no error.
func (s *Store) Delete(ids ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, id := range ids {
		if !isID(id) {
			continue
		}
		if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Store) path(id string) string { return filepath.Join(s.dir, id+suffix) }

func isID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 8 && strings.ToLower(s) == s
}
