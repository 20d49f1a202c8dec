package objects

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Writer writes the pieces of one object. It is safe for concurrent use, and one
// of many: all writers of an object share what is there.
type Writer struct {
	s *Store
	o toc.Object
	e *entry // nil if the object was there
}

// Writer joins those who write o. Writing an object that is there does nothing.
// Close the Writer in any case.
//
// errdefs.ErrFailedPrecondition: others are writing the object whose pieces, they
// were told, have other digests. One of the two was told lies; the end will show.
func (s *Store) Writer(o toc.Object) (*Writer, error) {
	if err := check(o); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.has(o.Digest) {
		s.mu.Unlock()
		return &Writer{s: s, o: o}, nil
	}
	e := s.join(o.Digest)
	e.writers++
	s.mu.Unlock()

	if !e.describe(o) && !s.redescribe(e, o) {
		s.leave(e, true)
		return nil, fmt.Errorf("object %s is being written with other pieces: %w", o.Digest, errdefs.ErrFailedPrecondition)
	}
	return &Writer{s: s, o: o, e: e}, nil
}

// join returns the entry of d, with one reference more. s.mu is held.
func (s *Store) join(d toc.Digest) *entry {
	e := s.entries[d]
	if e == nil {
		e = newEntry(s, d)
		s.entries[d] = e
	}
	e.refs++
	return e
}

// leave gives up a reference of e.
func (s *Store) leave(e *entry, writer bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.refs--; writer {
		if e.writers--; e.writers == 0 {
			e.closeFile()
		}
	}
	if e.refs == 0 && s.entries[e.d] == e && e.empty() {
		delete(s.entries, e.d)
	}
}

// redescribe throws away what an earlier writer with another description left,
// so that a lie does not outlive the liar. It fails if there are other writers.
func (s *Store) redescribe(e *entry, o toc.Object) bool {
	dir := &s.dirs[e.d[0]]
	dir.Lock()
	defer dir.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.writers > 1 || s.entries[e.d] != e {
		return false
	}
	if err := unix.Unlinkat(s.partialFD, e.d.Hex(), 0); ignoreNotExist(err) != nil {
		return false
	}
	e.closeFile()
	e.forget()
	return e.describe(o)
}

// Has tells whether piece i is there.
func (w *Writer) Has(i int) bool {
	if w.e == nil {
		return true
	}
	done, err := w.e.state(i)
	return done && err == nil
}

// Complete tells whether the whole object is.
func (w *Writer) Complete() bool { return w.s.Has(w.o.Digest) }

// Piece checks and stores piece i, which wakes those who wait for it. Pieces may
// come in any order and any number of times. The one that completes the object
// makes it checked as a whole, and published.
//
// errdefs.ErrDataLoss: the content is wrong. errdefs.ErrResourceExhausted: the
// disk is full; the piece may be written again.
func (w *Writer) Piece(i int, data []byte) error {
	n := pieces(w.o.Size)
	if i < 0 || i >= n {
		return fmt.Errorf("object %s has no piece %d: %w", w.o.Digest, i, errdefs.ErrInvalidArgument)
	}
	if w.e == nil {
		return nil
	}
	if n == 1 {
		return w.s.Put(w.o, data)
	}
	e := w.e
	if done, err := e.state(i); done {
		return err
	}
	off := int64(i) * toc.PieceSize
	if want := min(toc.PieceSize, w.o.Size-off); int64(len(data)) != want {
		return fmt.Errorf("object %s, piece %d: got %d bytes, want %d: %w", w.o.Digest, i, len(data), want, errdefs.ErrDataLoss)
	}
	if sha256.Sum256(data) != w.o.Pieces[i] {
		return fmt.Errorf("object %s, piece %d: wrong content: %w", w.o.Digest, i, errdefs.ErrDataLoss)
	}
	f, kept, err := e.openFile()
	if err != nil {
		return e.ifNotEnded(err)
	}
	if !kept {
		defer f.Close() // errors of writing were reported by write
	}
	if done, err := e.state(i); done { // was there already
		return err
	}
	if err := writePiece(f, data, off); err != nil {
		return e.ifNotEnded(err)
	}
	failpoint.Here("piece-written")
	e.add(i, data)
	if !e.store(i) {
		return nil
	}
	if err := w.s.finish(e, f); err != nil {
		e.unstore(i)
		return err
	}
	return nil
}

// ifNotEnded returns err, or what the entry ended with if others ended it while
// the caller wrote.
func (e *entry) ifNotEnded(err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return e.err
	}
	return writeError(e.d, err)
}

// writePiece is writeSparse on f, which others may close.
func writePiece(f *os.File, data []byte, off int64) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	err = c.Control(func(fd uintptr) { _, werr = writeSparse(int(fd), data, off) })
	return errors.Join(err, werr)
}

// finish checks and publishes an object all of whose pieces are in f.
func (s *Store) finish(e *entry, f *os.File) error {
	if err := e.check(f); err != nil {
		if errdefs.IsDataLoss(err) {
			return s.discard(e, err)
		}
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := f.Chmod(objectMode); err != nil {
		return err
	}
	failpoint.Here("pieces-checked")
	return s.publish(e.d, e.d.Hex(), allocated(st))
}

// discard ends e with why, and removes its file.
func (s *Store) discard(e *entry, why error) error {
	dir := &s.dirs[e.d[0]]
	dir.Lock()
	defer dir.Unlock()
	s.mu.Lock()
	if s.entries[e.d] == e {
		delete(s.entries, e.d)
	}
	s.mu.Unlock()
	e.end(why)
	return errors.Join(why, ignoreNotExist(unix.Unlinkat(s.partialFD, e.d.Hex(), 0)))
}

// Close leaves the object to the other writers. Pieces of an incomplete object
// stay until Sweep, so that a later Writer goes on from there.
func (w *Writer) Close() error {
	if w.e != nil {
		w.s.leave(w.e, true)
		w.e = nil
	}
	return nil
}
