package patches

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
)

const (
	magic       = "SLPATCH\x02"
	trailerSize = 8 + sha256.Size
	maxIndex    = 64 << 20
)

// ErrDamaged is wrapped by the errors about stored patches that are not what was
// written.
var ErrDamaged = errors.New("stored patch is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// part is the head or a segment, as the index has it.
type part struct {
	off        int64
	length     int
	compressed bool
	sum        uint32
	size       int // decoded
}

// stored is a patch in the blob store. It implements delta.Patch.
type stored struct {
	r        blob.Reader
	head     part
	segments []part
}

// Head returns the head of the patch.
func (p *stored) Head() ([]byte, error) { return p.read(&p.head) }

// Segment returns the segment of a piece as it is stored: one zstd frame if
// compressed, and the size of what it decodes to, 0 if the piece is not patched.
func (p *stored) Segment(piece int) (enc []byte, compressed bool, size int, err error) {
	if piece < 0 || piece >= len(p.segments) {
		return nil, false, 0, fmt.Errorf("no piece %d: %w", piece, ErrDamaged)
	}
	s := &p.segments[piece]
	if s.size == 0 {
		return nil, false, 0, nil
	}
	enc, err = p.read(s)
	return enc, s.compressed, s.size, err
}

// Close closes the blob below.
func (p *stored) Close() error { return p.r.Close() }

func (p *stored) read(s *part) ([]byte, error) {
	b := make([]byte, s.length)
	if err := readAt(p.r, b, s.off); err != nil {
		return nil, err
	}
	if crc32.Checksum(b, castagnoli) != s.sum {
		return nil, fmt.Errorf("%d bytes at %d: %w", s.length, s.off, ErrDamaged)
	}
	return b, nil
}

// open reads the index of a stored patch.
func open(ctx context.Context, s blob.Store, key string) (*stored, error) {
	r, err := s.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	p := &stored{r: r}
	if err := p.readIndex(); err != nil {
		return nil, errors.Join(fmt.Errorf("patch %q: %w", key, err), r.Close())
	}
	return p, nil
}

func (p *stored) readIndex() error {
	body := p.r.Size() - trailerSize - int64(len(magic))
	if body < 0 {
		return fmt.Errorf("%d bytes: %w", p.r.Size(), ErrDamaged)
	}
	head, trailer := make([]byte, len(magic)), make([]byte, trailerSize)
	if err := errors.Join(readAt(p.r, head, 0), readAt(p.r, trailer, p.r.Size()-trailerSize)); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint64(trailer)
	if string(head) != magic || n > maxIndex || int64(n) > body {
		return fmt.Errorf("index of %d bytes: %w", n, ErrDamaged)
	}
	ix := make([]byte, n)
	if err := readAt(p.r, ix, p.r.Size()-trailerSize-int64(n)); err != nil {
		return err
	}
	if sum := sha256.Sum256(ix); string(sum[:]) != string(trailer[8:]) {
		return fmt.Errorf("index: %w", ErrDamaged)
	}
	return p.parse(ix, int64(len(magic))+body-int64(n))
}

// parse reads the index of parts that end at offset end.
func (p *stored) parse(ix []byte, end int64) error {
	bad := false
	num := func(most uint64) int {
		v, n := binary.Uvarint(ix)
		if n <= 0 || v > most {
			bad, ix = true, nil
			return 0
		}
		ix = ix[n:]
		return int(v)
	}
	off := int64(len(magic))
	next := func() part {
		v := num(2*patch.MaxSegment + 1)
		if len(ix) < 4 {
			bad, ix = true, nil
			return part{}
		}
		s := part{off: off, length: v >> 1, compressed: v&1 != 0, sum: binary.LittleEndian.Uint32(ix)}
		ix = ix[4:]
		off += int64(s.length)
		return s
	}
	p.head = next()
	for n := num(uint64(len(ix))); n > 0 && !bad; n-- {
		s := next()
		s.size = num(patch.MaxSegment)
		p.segments = append(p.segments, s)
	}
	if bad || len(ix) > 0 || off != end {
		return fmt.Errorf("index: %w", ErrDamaged)
	}
	return nil
}

// writer writes a patch as it is stored.
type writer struct {
	w     io.Writer
	index []byte // head and segments
	head  int    // bytes of index that are the head's
	n     int
	size  int64
}

func newWriter(w io.Writer) (*writer, error) {
	_, err := io.WriteString(w, magic)
	return &writer{w: w, size: int64(len(magic))}, err
}

func (w *writer) part(b []byte, compressed bool) error {
	flag := uint64(0)
	if compressed {
		flag = 1
	}
	w.index = binary.AppendUvarint(w.index, uint64(len(b))<<1|flag)
	w.index = binary.LittleEndian.AppendUint32(w.index, crc32.Checksum(b, castagnoli))
	w.size += int64(len(b))
	_, err := w.w.Write(b)
	return err
}

func (w *writer) addHead(b []byte) error {
	err := w.part(b, false)
	w.head = len(w.index)
	return err
}

// segment adds the next one; size is 0 if the piece is not patched.
func (w *writer) segment(b []byte, compressed bool, size int) error {
	err := w.part(b, compressed)
	w.index = binary.AppendUvarint(w.index, uint64(size))
	w.n++
	return err
}

func (w *writer) finish() error {
	ix := append([]byte(nil), w.index[:w.head]...)
	ix = binary.AppendUvarint(ix, uint64(w.n))
	ix = append(ix, w.index[w.head:]...)
	sum := sha256.Sum256(ix)
	n := uint64(len(ix))
	ix = binary.LittleEndian.AppendUint64(ix, n)
	ix = append(ix, sum[:]...)
	w.size += int64(len(ix))
	_, err := w.w.Write(ix)
	return err
}

func readAt(r io.ReaderAt, b []byte, off int64) error {
	if n, err := r.ReadAt(b, off); n < len(b) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read patch: %w", err)
	}
	return nil
}
