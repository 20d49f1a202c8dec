package fsblob

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// writer is a blob.Writer. f is nil once it was committed or aborted.
type writer struct {
	s   *Store
	f   *os.File
	key string
	err error // of the first failed Write
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	if w.f == nil {
		return 0, fmt.Errorf("write blob %q: %w", w.key, os.ErrClosed)
	}
	n, err := w.f.Write(p)
	if err != nil {
		w.err = fmt.Errorf("write blob %q: %w", w.key, err)
	}
	return n, w.err
}

// Commit implements blob.Writer.
func (w *writer) Commit() (err error) {
	if w.f == nil {
		return fmt.Errorf("commit blob %q: %w", w.key, os.ErrClosed)
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	if w.err != nil {
		return w.err
	}
	if err := w.commit(); err != nil {
		return fmt.Errorf("commit blob %q: %w", w.key, err)
	}
	return nil
}

func (w *writer) commit() error {
	if err := w.f.Chmod(0o400); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	path := w.s.path(w.key)
	if err := w.s.mkdirs(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Rename(w.f.Name(), path); err != nil {
		return err
	}
	// From here on Abort must not remove anything.
	f := w.f
	w.f = nil
	return errors.Join(syncDir(filepath.Dir(path)), f.Close())
}

// Abort implements blob.Writer.
func (w *writer) Abort() error {
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	return errors.Join(os.Remove(f.Name()), f.Close())
}

// mkdirs makes dir and what is missing between it and the root of the blobs,
// each entry durable before it is relied upon.
func (s *Store) mkdirs(dir string) error {
	if _, err := os.Stat(dir); err == nil || dir == s.blobs {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := s.mkdirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// temp creates a temporary file and locks it.
func (s *Store) temp() (*os.File, error) {
	for {
		f, err := os.CreateTemp(s.tmp, "blob-*")
		if err != nil {
			return nil, err
		}
		if err := flock(f, unix.LOCK_EX); err != nil {
			return nil, errors.Join(err, os.Remove(f.Name()), f.Close())
		}
		// A process that starts may have swept the file away before it was locked.
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return nil, errors.Join(err, os.Remove(f.Name()), f.Close())
		}
		if st.Nlink > 0 {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// sweep removes the temporary files that nobody holds a lock on.
func (s *Store) sweep() error {
	ents, err := os.ReadDir(s.tmp)
	if err != nil {
		return err
	}
	for _, e := range ents {
		if err := sweepFile(filepath.Join(s.tmp, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func sweepFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil // being written
		}
		return err
	}
	return os.Remove(path)
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
