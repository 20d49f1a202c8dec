// Package fsblob keeps blobs as files of a directory.
//
// A blob is written to a file of its own below tmp, synced, and renamed to its
// name below blobs. The writer holds a lock on its temporary file, so that what a
// dead process left behind is told from what another process is writing.
package fsblob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
)

// Store is a blob.Store in a directory.
type Store struct {
	blobs, tmp string
}

var _ blob.Store = (*Store)(nil)

// New opens the store in dir, which is created if it is not there. Temporary
// files of processes that are gone are removed.
func New(dir string) (*Store, error) {
	s := &Store{blobs: filepath.Join(dir, "blobs"), tmp: filepath.Join(dir, "tmp")}
	for _, d := range []string{s.blobs, s.tmp} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("blob directory: %w", err)
		}
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("remove stale temporary files: %w", err)
	}
	return s, nil
}

// Create implements blob.Store.
func (s *Store) Create(ctx context.Context, key string) (blob.Writer, error) {
	if err := blob.CheckKey(key); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := s.temp()
	if err != nil {
		return nil, fmt.Errorf("create blob %q: %w", key, err)
	}
	return &writer{s: s, f: f, key: key}, nil
}

// Open implements blob.Store.
func (s *Store) Open(ctx context.Context, key string) (blob.Reader, error) {
	if err := blob.CheckKey(key); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(s.path(key))
	if err != nil {
		return nil, s.fail("open", key, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = blob.ErrNotExist // the first segments of another key
	}
	if err != nil {
		return nil, errors.Join(s.fail("open", key, err), f.Close())
	}
	return &reader{File: f, size: st.Size()}, nil
}

// Stat implements blob.Store.
func (s *Store) Stat(ctx context.Context, key string) (int64, error) {
	if err := blob.CheckKey(key); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	st, err := os.Lstat(s.path(key))
	if err == nil && !st.Mode().IsRegular() {
		err = blob.ErrNotExist
	}
	if err != nil {
		return 0, s.fail("stat", key, err)
	}
	return st.Size(), nil
}

// Delete implements blob.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if _, err := s.Stat(ctx, key); err != nil {
		return err
	}
	if err := os.Remove(s.path(key)); err != nil {
		return s.fail("delete", key, err)
	}
	return nil
}

// DeleteBelow removes all blobs whose keys begin with the segments of key.
func (s *Store) DeleteBelow(key string) error {
	if err := blob.CheckKey(key); err != nil {
		return err
	}
	if err := os.RemoveAll(s.path(key)); err != nil && !errors.Is(err, unix.ENOTDIR) {
		return s.fail("delete all below", key, err)
	}
	return nil
}

func (s *Store) path(key string) string {
	return filepath.Join(s.blobs, filepath.FromSlash(key))
}

// fail describes an error without the path of the directory, and takes
// "a segment of the key is a file" for what it is: no such blob.
func (s *Store) fail(op, key string, err error) error {
	if errors.Is(err, unix.ENOTDIR) {
		err = blob.ErrNotExist
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return fmt.Errorf("%s blob %q: %w", op, key, err)
}

type reader struct {
	*os.File
	size int64
}

// Size implements blob.Reader.
func (r *reader) Size() int64 { return r.size }
