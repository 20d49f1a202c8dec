// Package objects is the content-addressed store of one node.
package objects

import (
	"context"
	"errors"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

var errBuilding = errors.New("objects: under construction")

// Store is safe for concurrent use.
type Store struct{}

// Open loads the store below root (objects/, partial/), which it creates if
// need be, and removes what was only partly there.
func Open(root string) (*Store, error) { return nil, errBuilding }

// Close closes what the store holds open; unfinished objects stay unfinished.
func (s *Store) Close() error { return errBuilding }

// Dir is the directory of the complete objects: a data-only layer.
func (s *Store) Dir() string { return "" }

// PartialDir is the directory of what is arriving.
func (s *Store) PartialDir() string { return "" }

// Has tells whether d is complete.
func (s *Store) Has(d toc.Digest) bool { return false }

// Missing returns the indices of the objects that are not complete.
func (s *Store) Missing(objs []toc.Object) []int { return nil }

// Size of a complete object.
func (s *Store) Size(d toc.Digest) (int64, bool) { return 0, false }

// Put stores a whole object of at most toc.PieceSize bytes. It does nothing if
// the object is there.
func (s *Store) Put(o toc.Object, data []byte) error { return errBuilding }

// Writer joins those who write o. Writing an object that is there does nothing.
func (s *Store) Writer(o toc.Object) (*Writer, error) { return nil, errBuilding }

// Writer writes the pieces of one object.
type Writer struct{}

// Piece checks and stores piece i. Any order, any number of times.
func (w *Writer) Piece(i int, data []byte) error { return errBuilding }

// Has tells whether piece i is valid.
func (w *Writer) Has(i int) bool { return false }

// Complete tells whether the object is.
func (w *Writer) Complete() bool { return false }

// Close leaves the object to the other writers. Valid pieces of an incomplete
// object stay until Sweep or Open, so that the next writer goes on from there.
func (w *Writer) Close() error { return errBuilding }

// Wait blocks until bytes [off, off+n) of d are valid on the disk, ctx ends, or Fail(d).
// It waits for objects that nobody writes yet as well.
func (s *Store) Wait(ctx context.Context, d toc.Digest, off, n int64) error { return errBuilding }

// Fail ends with err all Waits for ds that are not satisfied. Later Waits block again.
func (s *Store) Fail(err error, ds ...toc.Digest) {}

// Pin protects ds from Sweep and Remove until release is called. Pin before Has.
func (s *Store) Pin(ds []toc.Digest) (release func()) { return nil }

// Remove removes an object, unless it is pinned or has a writer (errdefs.ErrFailedPrecondition).
func (s *Store) Remove(d toc.Digest) error { return errBuilding }

// Sweep removes all objects, whole or partial, that are not live, pinned or being
// written. It returns what was freed.
func (s *Store) Sweep(live func(toc.Digest) bool) (bytes, n int64, err error) {
	return 0, 0, errBuilding
}

// Verify hashes the objects ds that are there, removes those whose content is
// not what their name says, and returns them.
func (s *Store) Verify(ctx context.Context, ds []toc.Digest) (bad []toc.Digest, err error) {
	return nil, errBuilding
}

// Usage is the disk space of all complete objects, and their number.
func (s *Store) Usage() (bytes, n int64) { return 0, 0 }

// Sync makes all complete objects durable (syncfs).
func (s *Store) Sync() error { return errBuilding }
