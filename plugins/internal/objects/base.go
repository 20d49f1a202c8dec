package objects

import (
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Base is a complete object that is read at random. It holds no file open: a
// stream has thousands of them.
type Base struct {
	s *Store
	o toc.Object
}

// Base returns o for reading. It must stay pinned for as long as it is used.
// errdefs.ErrNotFound: it is not complete.
func (s *Store) Base(o toc.Object) (*Base, error) {
	if !s.Has(o.Digest) {
		return nil, fmt.Errorf("object %s is not here: %w", o.Digest, errdefs.ErrNotFound)
	}
	return &Base{s, o}, nil
}

// Size of the object.
func (b *Base) Size() int64 { return b.o.Size }

// ReadAt implements io.ReaderAt.
func (b *Base) ReadAt(p []byte, off int64) (n int, err error) {
	var fd int
	err = retry(func() (err error) {
		fd, err = unix.Openat(b.s.dirFD, b.o.Digest.Path(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("open object %s: %w", b.o.Digest, err)
	}
	defer unix.Close(fd) // read only
	for n < len(p) {
		var m int
		err := retry(func() (err error) {
			m, err = unix.Pread(fd, p[n:], off+int64(n))
			return err
		})
		if err != nil {
			return n, fmt.Errorf("read object %s: %w", b.o.Digest, err)
		}
		if m == 0 {
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}
