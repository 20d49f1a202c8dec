package objects

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Partial is an object of which some pieces are there.
type Partial struct {
	Digest toc.Digest
	Pieces []byte // bit i (LSB first) is set if piece i is there
}

// Partials lists at most limit of the objects of which some pieces are there.
func (s *Store) Partials(limit int) []Partial {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []Partial
	for d, e := range s.entries {
		if len(all) == limit {
			break
		}
		if bits := e.bitmap(); bits != nil {
			all = append(all, Partial{d, bits})
		}
	}
	return all
}

// bitmap is nil if nothing is stored.
func (e *entry) bitmap() []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.nstored == 0 || e.ended {
		return nil
	}
	bits := make([]byte, (len(e.stored)+7)/8)
	for i, stored := range e.stored {
		if stored {
			bits[i/8] |= 1 << (i % 8)
		}
	}
	return bits
}

// Adopt takes over what an earlier process has left of a large object, if it has left
// anything: pieces that are what they should be count as stored.
func (s *Store) Adopt(o toc.Object) error {
	if o.Size <= toc.PieceSize {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(s.partial, o.Digest.Hex())); err != nil {
		return ignoreNotExist(err)
	}
	w, err := s.Writer(o)
	if err != nil {
		return err
	}
	defer w.Close() // cannot fail
	if w.e == nil {
		return nil
	}
	f, kept, err := w.e.openFile()
	if err != nil {
		return w.e.ifNotEnded(err)
	}
	if !kept {
		return f.Close()
	}
	return nil
}

// KeepPartial removes what an earlier process has left of objects that are not wanted.
// Call it before anything is written.
func (s *Store) KeepPartial(wanted func(toc.Digest) bool) error {
	names, err := os.ReadDir(s.partial)
	if err != nil {
		return err
	}
	var errs []error
	for _, de := range names {
		d, err := toc.ParseDigest("sha256:" + de.Name())
		if err == nil && wanted(d) && !s.Has(d) {
			continue
		}
		errs = append(errs, ignoreNotExist(unix.Unlinkat(s.partialFD, de.Name(), 0)))
	}
	return errors.Join(errs...)
}

// adopt looks for good pieces in the file of an earlier process. The rest becomes a
// hole, as writers leave out what is zero. e.fileMu is held.
func (e *entry) adopt(f *os.File) error {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	e.mu.Lock()
	o := e.o
	e.mu.Unlock()
	if st.Size() != o.Size {
		return f.Truncate(0)
	}
	buf := make([]byte, toc.PieceSize)
	left := len(o.Pieces) // the last one to be found is left for who completes the object
	for i, want := range o.Pieces {
		off := int64(i) * toc.PieceSize
		b := buf[:min(toc.PieceSize, o.Size-off)]
		if _, err := f.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.EIO) {
			return fmt.Errorf("read what is there of object %s: %w", e.d, err)
		} else if err == nil && sha256.Sum256(b) == want && left > 1 {
			e.store(i)
			left--
			continue
		}
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(len(b))); err != nil {
			return fmt.Errorf("clear piece %d of object %s: %w", i, e.d, err)
		}
	}
	return nil
}
