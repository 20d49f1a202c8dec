// Package blob is where proxyd keeps big immutable files, such as the packs
// and tables of contents of layers, each under a key.
//
// A key is one or more segments of the characters a-z, 0-9, '-', '_' and '.',
// joined by '/'; no segment begins with a dot. What is stored under a key never
// changes: writers of the same key write the same bytes, so it does not matter
// who wins.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// ErrNotExist is wrapped by the errors of Open, Stat and Delete for a key that
// has no blob.
var ErrNotExist = fs.ErrNotExist

// ErrKey is wrapped by the errors of all methods for a malformed key.
var ErrKey = errors.New("malformed blob key")

// maxKey is well below the limits of file systems and of S3 (1024 bytes).
const maxKey = 512

// Store keeps blobs. All methods may be called at the same time; several
// processes may share what is behind a Store.
type Store interface {
	// Create begins a blob. Nobody sees it before Commit.
	Create(ctx context.Context, key string) (Writer, error)
	// Open opens a committed blob. It stays readable until closed, even if it is
	// deleted in the meantime.
	Open(ctx context.Context, key string) (Reader, error)
	// Stat returns the size in bytes of a committed blob.
	Stat(ctx context.Context, key string) (int64, error)
	// Delete removes a blob.
	Delete(ctx context.Context, key string) error
}

// Writer writes one blob. It is not safe for concurrent use. Either Commit or
// Abort must be called; Abort after Commit does nothing, so it can be deferred.
type Writer interface {
	io.Writer
	// Commit makes the blob visible and durable. A blob that is already there
	// under the key is replaced.
	Commit() error
	// Abort throws away what was written.
	Abort() error
}

// Reader reads one blob. ReadAt may be called concurrently.
type Reader interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// CheckKey returns an error wrapping ErrKey if key is malformed.
func CheckKey(key string) error {
	if len(key) > maxKey {
		return fmt.Errorf("%w: %d bytes", ErrKey, len(key))
	}
	for seg := range strings.SplitSeq(key, "/") {
		if seg == "" || seg[0] == '.' {
			return fmt.Errorf("%w: %q", ErrKey, key)
		}
		for _, c := range []byte(seg) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
				return fmt.Errorf("%w: %q", ErrKey, key)
			}
		}
	}
	return nil
}

// Put stores b under key.
func Put(ctx context.Context, s Store, key string, b []byte) error {
	w, err := s.Create(ctx, key)
	if err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return errors.Join(err, w.Abort())
	}
	return w.Commit()
}

// Get returns the blob under key; it refuses blobs of more than limit bytes.
func Get(ctx context.Context, s Store, key string, limit int64) ([]byte, error) {
	r, err := s.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.Size() > limit {
		return nil, fmt.Errorf("blob %q has %d bytes, limit %d", key, r.Size(), limit)
	}
	b := make([]byte, r.Size())
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, r.Size()), b); err != nil {
		return nil, fmt.Errorf("read blob %q: %w", key, err)
	}
	return b, nil
}
