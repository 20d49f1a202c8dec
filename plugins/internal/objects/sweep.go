package objects

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Pin protects ds from Sweep and Remove until release is called. Pin first and
// ask Has after: what is there then stays.
func (s *Store) Pin(ds []toc.Digest) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range ds {
		s.pins[d]++
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range ds {
			if s.pins[d]--; s.pins[d] == 0 {
				delete(s.pins, d)
			}
		}
	})
}

// Remove removes an object or what is there of it. errdefs.ErrFailedPrecondition:
// it is pinned or somebody writes it.
func (s *Store) Remove(d toc.Digest) error {
	_, _, err := s.remove(d, false)
	return err
}

// Sweep removes all objects, whole or partial, that are neither live, nor pinned,
// nor being written. It returns the disk space and the number of objects freed.
func (s *Store) Sweep(live func(toc.Digest) bool) (bytes, n int64, err error) {
	var errs []error
	for i := range s.local {
		for _, d := range s.candidates(i) {
			if live(d) {
				continue
			}
			freed, ok, err := s.remove(d, false)
			if err != nil && !errdefs.IsFailedPrecondition(err) {
				errs = append(errs, err)
			}
			if ok {
				bytes += freed
				n++
			}
		}
	}
	return bytes, n, errors.Join(errs...)
}

// candidates lists what is there of the objects with the first byte i. One byte
// at a time: the list of all would be large.
func (s *Store) candidates(i int) []toc.Digest {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ds := make([]toc.Digest, 0, len(s.local[i]))
	for d := range s.local[i] {
		if s.pins[d] == 0 {
			ds = append(ds, d)
		}
	}
	for d, e := range s.entries {
		if int(d[0]) == i && e.refs == 0 && s.pins[d] == 0 {
			ds = append(ds, d)
		}
	}
	return ds
}

// remove is Remove, and tells what it freed if it freed a complete object. By
// force it removes what is in use, too.
func (s *Store) remove(d toc.Digest, force bool) (bytes int64, ok bool, err error) {
	dir := &s.dirs[d[0]]
	dir.Lock()
	defer dir.Unlock()
	path := filepath.Join(s.dir, d.Path())
	st, err := os.Lstat(path)
	if err == nil {
		bytes = allocated(st)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, false, fmt.Errorf("remove object %s: %w", d, err)
	}

	s.mu.Lock()
	e := s.entries[d]
	if !force && (s.pins[d] > 0 || e != nil && e.refs > 0) {
		s.mu.Unlock()
		return 0, false, fmt.Errorf("object %s is in use: %w", d, errdefs.ErrFailedPrecondition)
	}
	if e != nil && e.refs == 0 {
		delete(s.entries, d)
	} else {
		e = nil // has writers or waiters, hence is not complete
	}
	if ok = s.has(d); ok {
		delete(s.local[d[0]], d)
		s.n--
		s.bytes = max(0, s.bytes-bytes)
	}
	s.mu.Unlock()

	err = ignoreNotExist(unix.Unlinkat(s.dirFD, d.Path(), 0))
	if e != nil {
		err = errors.Join(err, ignoreNotExist(unix.Unlinkat(s.partialFD, d.Hex(), 0)))
	}
	if err != nil {
		return 0, false, fmt.Errorf("remove object %s: %w", d, err)
	}
	failpoint.Here("object-removed")
	return bytes, ok, nil
}

// allocated is the disk space of a file.
func allocated(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

// Verify hashes those of ds that are there, removes the objects whose content is
// not what their name says, and returns them. Call it after a crash for what was
// not synced, before anything reads it.
func (s *Store) Verify(ctx context.Context, ds []toc.Digest) (bad []toc.Digest, err error) {
	var mu sync.Mutex // guards bad
	g, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		g.Go(func() error {
			buf := make([]byte, 256<<10)
			for i := w; i < len(ds); i += workers {
				if err := ctx.Err(); err != nil {
					return err
				}
				if !s.Has(ds[i]) {
					continue
				}
				good, err := s.verify(ds[i], buf)
				if err != nil {
					return err
				}
				if good {
					continue
				}
				if _, _, err := s.remove(ds[i], true); err != nil {
					return err
				}
				mu.Lock()
				bad = append(bad, ds[i])
				mu.Unlock()
			}
			return nil
		})
	}
	err = g.Wait()
	return bad, err
}

func (s *Store) verify(d toc.Digest, buf []byte) (bool, error) {
	f, err := os.Open(filepath.Join(s.dir, d.Path()))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("verify object %s: %w", d, err)
	}
	defer f.Close() // read only
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf); err != nil {
		if errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) {
			return false, nil // a bad disk block: as good as wrong
		}
		return false, fmt.Errorf("verify object %s: %w", d, err)
	}
	return toc.Digest(h.Sum(nil)) == d, nil
}
