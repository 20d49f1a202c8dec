package objects

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// maxFiles bounds the partial files that are kept open. Objects beyond it have
// theirs opened for each piece.
const maxFiles = 64

// entry is an object that is not complete and that somebody writes, waits for,
// or has written in part. It is in Store.entries until it ends.
type entry struct {
	s *Store
	d toc.Digest

	refs    int // writers and waiters; guarded by Store.mu
	writers int // guarded by Store.mu

	mu      sync.Mutex // guards the following
	o       toc.Object // zero until there is a writer
	stored  []bool     // pieces in the file
	valid   []bool     // pieces that may be read: stored, but for the one that completes the object
	nstored int
	waiters map[*waiter]struct{}
	ended   bool
	err     error // if ended: why it did not become complete

	sumMu sync.Mutex // guards the following
	sum   hash.Hash  // of the pieces before next
	next  int

	fileMu  sync.Mutex // guards the following
	file    *os.File
	adopted bool // what was in the file before has been looked at
}

// waiter is one who waits for the pieces first to last.
type waiter struct {
	first, last int64
	ch          chan error // of size 1: gets one value, after the waiter has left waiters
}

func newEntry(s *Store, d toc.Digest) *entry {
	return &entry{s: s, d: d, waiters: make(map[*waiter]struct{})}
}

// describe sets what the object looks like, or checks that writers agree. It
// tells whether they do.
func (e *entry) describe(o toc.Object) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.o.Size != 0 {
		return sameObject(e.o, o)
	}
	e.o = o
	e.stored = make([]bool, pieces(o.Size))
	e.valid = make([]bool, pieces(o.Size))
	return true
}

// forget is the inverse of describe.
func (e *entry) forget() {
	e.mu.Lock()
	e.o, e.stored, e.valid, e.nstored = toc.Object{}, nil, nil, 0
	e.mu.Unlock()
	e.sumMu.Lock()
	e.sum, e.next = nil, 0
	e.sumMu.Unlock()
}

// empty tells whether nothing is stored.
func (e *entry) empty() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.nstored == 0
}

// end wakes all who wait, with err.
func (e *entry) end(err error) {
	e.mu.Lock()
	e.ended, e.err = true, err
	e.wakeAll(err)
	e.mu.Unlock()
	e.closeFile()
}

// state is (true, why) if the entry has ended, (true, nil) if piece i is stored.
func (e *entry) state(i int) (done bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return true, e.err
	}
	return e.stored[i], nil
}

// store records that piece i is in the file. It tells whether it was the one
// that was still missing: that is not valid before the whole is checked.
func (e *entry) store(i int) (last bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended || e.stored[i] {
		return false
	}
	e.stored[i] = true
	e.nstored++
	if e.nstored == len(e.stored) {
		return true
	}
	e.valid[i] = true
	for w := range e.waiters {
		if w.first <= int64(i) && int64(i) <= w.last && e.covers(w) {
			e.wake(w, nil)
		}
	}
	return false
}

// unstore takes back the last store.
func (e *entry) unstore(i int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stored[i] = false
	e.nstored--
}

// covers tells whether all that w waits for is valid. e.mu is held.
func (e *entry) covers(w *waiter) bool {
	if e.o.Size == 0 {
		return false
	}
	for i := w.first; i <= w.last && i < int64(len(e.valid)); i++ {
		if !e.valid[i] {
			return false
		}
	}
	return true
}

func (e *entry) wake(w *waiter, err error) {
	delete(e.waiters, w)
	w.ch <- err
}

func (e *entry) wakeAll(err error) {
	for w := range e.waiters {
		e.wake(w, err)
	}
}

// wait blocks until w is covered, the entry ends, or ctx does.
func (e *entry) wait(ctx context.Context, w *waiter) error {
	e.mu.Lock()
	if e.ended || e.covers(w) {
		defer e.mu.Unlock()
		return e.err
	}
	e.waiters[w] = struct{}{}
	e.mu.Unlock()
	select {
	case err := <-w.ch:
		return err
	case <-ctx.Done():
		e.mu.Lock()
		delete(e.waiters, w)
		e.mu.Unlock()
		return ctx.Err()
	}
}

// add hashes piece i if it is the next one. What comes out of order is left to check.
func (e *entry) add(i int, data []byte) {
	e.sumMu.Lock()
	defer e.sumMu.Unlock()
	if e.sum == nil {
		e.sum = sha256.New()
	}
	if i == e.next {
		_, _ = e.sum.Write(data) // a hash does not fail
		e.next++
	}
}

// check hashes the pieces that were not hashed when they came, all of which are
// in f, and compares.
func (e *entry) check(f *os.File) error {
	e.sumMu.Lock()
	defer e.sumMu.Unlock()
	off := min(int64(e.next)*toc.PieceSize, e.o.Size)
	if _, err := io.Copy(e.sum, io.NewSectionReader(f, off, e.o.Size-off)); err != nil {
		// The hash may have part of a piece now.
		e.sum, e.next = sha256.New(), 0
		return fmt.Errorf("read back object %s: %w", e.d, err)
	}
	e.next = len(e.stored)
	if toc.Digest(e.sum.Sum(nil)) != e.d {
		return fmt.Errorf("object %s: its pieces are right, the whole is not: %w", e.d, errdefs.ErrDataLoss)
	}
	return nil
}

// openFile returns the partial file. The caller closes it unless it is kept.
func (e *entry) openFile() (f *os.File, kept bool, err error) {
	e.fileMu.Lock()
	f = e.file
	e.fileMu.Unlock()
	if f != nil {
		return f, true, nil
	}
	dir := &e.s.dirs[e.d[0]]
	dir.Lock()
	defer dir.Unlock()
	e.mu.Lock()
	ended, size := e.ended, e.o.Size
	e.mu.Unlock()
	if ended {
		return nil, false, os.ErrClosed
	}
	e.fileMu.Lock()
	defer e.fileMu.Unlock()
	if e.file != nil {
		return e.file, true, nil
	}
	f, err = os.OpenFile(filepath.Join(e.s.partial, e.d.Hex()), os.O_RDWR|os.O_CREATE, partialMode)
	if err != nil {
		return nil, false, err
	}
	if !e.adopted {
		if err := e.adopt(f); err != nil {
			return nil, false, errors.Join(err, f.Close())
		}
		e.adopted = true
	}
	if err := f.Truncate(size); err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	if e.s.files.Add(1) > maxFiles {
		e.s.files.Add(-1)
		return f, false, nil
	}
	e.file = f
	return f, true, nil
}

// closeFile closes the file if it is kept open. Those who still write to it fail,
// and find that the entry has ended.
func (e *entry) closeFile() {
	e.fileMu.Lock()
	defer e.fileMu.Unlock()
	if e.file != nil {
		_ = e.file.Close() // errors of writing were reported by write
		e.file = nil
		e.s.files.Add(-1)
	}
}
