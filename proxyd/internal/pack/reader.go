package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Reader reads a pack. It is safe for concurrent use. The numbers of objects and
// pieces given to its methods must be below Objects and Pieces, as those of
// slices must.
type Reader struct {
	r blob.Reader
	*index
}

// Open opens the pack under key.
func Open(ctx context.Context, s blob.Store, key string) (*Reader, error) {
	b, err := s.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	r, err := NewReader(b)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pack %q: %w", key, err), b.Close())
	}
	return r, nil
}

// NewReader reads the index of a pack. On success the Reader owns r.
func NewReader(r blob.Reader) (*Reader, error) {
	size := r.Size()
	if size < int64(len(head)+trailerSize) {
		return nil, fmt.Errorf("%d bytes: %w", size, ErrInvalid)
	}
	h, trailer := make([]byte, len(head)), make([]byte, trailerSize)
	if err := readAt(r, h, 0); err != nil {
		return nil, err
	}
	if err := readAt(r, trailer, size-int64(trailerSize)); err != nil {
		return nil, err
	}
	if string(h) != head || string(trailer[40:]) != tail {
		return nil, fmt.Errorf("no pack of this version: %w", ErrInvalid)
	}
	n := binary.LittleEndian.Uint64(trailer)
	if n > maxIndex || int64(n) > size-int64(len(head)+trailerSize) {
		return nil, fmt.Errorf("index of %d bytes: %w", n, ErrInvalid)
	}
	enc := make([]byte, n)
	end := size - int64(trailerSize) - int64(n)
	if err := readAt(r, enc, end); err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(enc); !bytes.Equal(sum[:], trailer[8:40]) {
		return nil, fmt.Errorf("checksum of the index: %w", ErrInvalid)
	}
	idx, err := decodeIndex(enc, end)
	if err != nil {
		return nil, err
	}
	return &Reader{r: r, index: idx}, nil
}

// Close closes the blob below.
func (r *Reader) Close() error { return r.r.Close() }

// Piece returns a piece as it is stored: one zstd frame if compressed, the plain
// bytes if not.
func (r *Reader) Piece(object, piece int) (enc []byte, compressed bool, err error) {
	return r.AppendStored(nil, object, piece)
}

// Stored is the size of a piece as it is stored.
func (r *Reader) Stored(object, piece int) int {
	_, n, _ := r.frame(object, piece)
	return n
}

// AppendStored is Piece that appends to dst.
func (r *Reader) AppendStored(dst []byte, object, piece int) (enc []byte, compressed bool, err error) {
	off, n, compressed := r.frame(object, piece)
	k := len(dst)
	if cap(dst)-k < n {
		dst = append(make([]byte, 0, k+n), dst...)
	}
	dst = dst[:k+n]
	if err := readAt(r.r, dst[k:], off); err != nil {
		return nil, false, fmt.Errorf("object %d, piece %d: %w", object, piece, err)
	}
	return dst, compressed, nil
}

// AppendPiece appends the plain bytes of a piece to dst.
func (r *Reader) AppendPiece(dst []byte, object, piece int) ([]byte, error) {
	if _, _, compressed := r.frame(object, piece); !compressed {
		dst, _, err := r.AppendStored(dst, object, piece)
		return dst, err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	enc, _, err := r.AppendStored((*buf)[:0], object, piece)
	if err != nil {
		return nil, err
	}
	*buf = enc
	want := r.PieceLen(object, piece)
	dst = slices.Grow(dst, want)
	k := len(dst)
	// The limit of the decoder would count what is in dst.
	out, err := decoder().DecodeAll(enc, dst[k:k])
	if err != nil {
		return nil, fmt.Errorf("object %d, piece %d: %w: %w", object, piece, ErrInvalid, err)
	}
	if len(out) != want {
		return nil, fmt.Errorf("object %d, piece %d has %d bytes, not %d: %w", object, piece, len(out), want, ErrInvalid)
	}
	return append(dst, out...), nil
}

// Object returns random access to the plain bytes of one object. It keeps the
// piece that was read last.
func (r *Reader) Object(object int) *io.SectionReader {
	return io.NewSectionReader(&objectReader{r: r, object: object, have: -1}, 0, r.Size(object))
}

type objectReader struct {
	r      *Reader
	object int

	mu   sync.Mutex // guards: have, buf
	have int        // the piece in buf
	buf  []byte
}

// ReadAt implements io.ReaderAt.
func (o *objectReader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for n < len(p) {
		if off >= o.r.Size(o.object) {
			return n, io.EOF
		}
		if piece := int(off / toc.PieceSize); piece != o.have {
			o.have = -1
			buf, err := o.r.AppendPiece(o.buf[:0], o.object, piece)
			if err != nil {
				return n, err
			}
			o.buf, o.have = buf, piece
		}
		k := copy(p[n:], o.buf[off%toc.PieceSize:])
		n, off = n+k, off+int64(k)
	}
	return n, nil
}

// readAt fills b.
func readAt(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read pack: %w", err)
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// decoder decodes pieces, and nothing larger.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)),
		zstd.WithDecoderMaxMemory(toc.PieceSize),
		zstd.WithDecoderMaxWindow(toc.PieceSize))
	if err != nil {
		panic(err) // constant options
	}
	return d
})
