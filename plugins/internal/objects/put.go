package objects

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Put stores a whole object of at most toc.PieceSize bytes. It does nothing if
// the object is there.
func (s *Store) Put(o toc.Object, data []byte) error {
	if err := check(o); err != nil {
		return err
	}
	if o.Size > toc.PieceSize {
		return fmt.Errorf("put %s: %d bytes are more than a piece: %w", o.Digest, o.Size, errdefs.ErrInvalidArgument)
	}
	if s.Has(o.Digest) {
		return nil
	}
	if int64(len(data)) != o.Size {
		return fmt.Errorf("put %s: got %d bytes, want %d: %w", o.Digest, len(data), o.Size, errdefs.ErrDataLoss)
	}
	if sha256.Sum256(data) != o.Digest {
		return fmt.Errorf("put %s: wrong content: %w", o.Digest, errdefs.ErrDataLoss)
	}
	// Not the bare digest: two may put the same object at once, each its own file.
	name := o.Digest.Hex() + "." + strconv.FormatUint(s.seq.Add(1), 36)
	blocks, err := s.writeFile(name, data)
	if err == nil {
		failpoint.Here("object-written")
		err = s.publish(o.Digest, name, blocks)
	} else {
		err = writeError(o.Digest, err)
	}
	if err != nil {
		return errors.Join(err, ignoreNotExist(unix.Unlinkat(s.partialFD, name, 0)))
	}
	return nil
}

// writeFile writes a new file in partial/ and returns what it takes on the disk.
// It makes the system calls itself: os.File costs a third more, and images have
// tens of thousands of small files.
func (s *Store) writeFile(name string, data []byte) (blocks int64, err error) {
	var fd int
	err = retry(func() (err error) {
		fd, err = unix.Openat(s.partialFD, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, objectMode)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if blocks, err = writeSparse(fd, data, 0); err != nil {
		return 0, err
	}
	if zeroTail(data) {
		err = unix.Ftruncate(fd, int64(len(data)))
	}
	return blocks, err
}

// check refuses what cannot be an object.
func check(o toc.Object) error {
	want := 0
	if o.Size > toc.PieceSize {
		want = pieces(o.Size)
	}
	if o.Size <= 0 || len(o.Pieces) != want {
		return fmt.Errorf("object %s of %d bytes with %d pieces: %w", o.Digest, o.Size, len(o.Pieces), errdefs.ErrInvalidArgument)
	}
	return nil
}

// pieces is the number of pieces of an object.
func pieces(size int64) int { return int((size + toc.PieceSize - 1) / toc.PieceSize) }

// sameObject tells whether two descriptions of one digest agree.
func sameObject(a, b toc.Object) bool {
	return a.Size == b.Size && slices.Equal(a.Pieces, b.Pieces)
}

// zeroBlock is what a block must equal to be left out.
var zeroBlock [blockSize]byte

// isHole tells whether the block of data at off is whole and zero.
func isHole(data []byte, off int) bool {
	return off+blockSize <= len(data) && bytes.Equal(data[off:off+blockSize], zeroBlock[:])
}

// zeroTail tells whether writeSparse does not write the last byte of data.
func zeroTail(data []byte) bool {
	return len(data)%blockSize == 0 && isHole(data, len(data)-blockSize)
}

// writeSparse writes data at off, a multiple of blockSize, but for its zero
// blocks, and returns the bytes of the blocks that it wrote.
func writeSparse(fd int, data []byte, off int64) (blocks int64, err error) {
	for i := 0; i < len(data); {
		if isHole(data, i) {
			i += blockSize
			continue
		}
		end := i + blockSize
		for end < len(data) && !isHole(data, end) {
			end += blockSize
		}
		blocks += int64(end - i)
		end = min(end, len(data))
		if err := pwrite(fd, data[i:end], off+int64(i)); err != nil {
			return 0, err
		}
		i = end
	}
	return blocks, nil
}

func pwrite(fd int, data []byte, off int64) error {
	for len(data) > 0 {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Pwrite(fd, data, off)
			return err
		})
		if err != nil {
			return err
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// writeError says which object could not be written, and gives a full disk its class.
func writeError(d toc.Digest, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("write object %s: %w: %w", d, errdefs.ErrResourceExhausted, err)
	}
	return fmt.Errorf("write object %s: %w", d, err)
}

func ignoreNotExist(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
