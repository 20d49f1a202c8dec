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
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	magic       = "SLPATCH\x01"
	trailerSize = 8 + sha256.Size
	maxIndex    = 64 << 20
)

// ErrDamaged is wrapped by the errors about stored patches that are not what was
// written.
var ErrDamaged = errors.New("stored patch is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Entry is a part of a frame.
type Entry struct {
	Length int
	Plain  bool // a piece as it is, not a segment
}

// frame is a frame as the index has it.
type frame struct {
	off        int64
	length     int
	compressed bool
	sum        uint32
	first      int // number of the first entry
	entries    int
}

// Patch is a stored patch. It must be closed, and may be used by several
// goroutines.
type Patch struct {
	r       blob.Reader
	frames  []frame
	entries []Entry
}

// Frames returns the number of frames.
func (p *Patch) Frames() int { return len(p.frames) }

// Frame returns what frame i holds: the first of its entries is the head of the
// patch if first is -1, else piece number first; and its bytes, appended to dst.
func (p *Patch) Frame(dst []byte, i int) (contents []byte, compressed bool, first int, entries []Entry, err error) {
	f := &p.frames[i]
	n := len(dst)
	contents = append(dst, make([]byte, f.length)...)
	if err := readAt(p.r, contents[n:], f.off); err != nil {
		return nil, false, 0, nil, err
	}
	if crc32.Checksum(contents[n:], castagnoli) != f.sum {
		return nil, false, 0, nil, fmt.Errorf("frame %d: %w", i, ErrDamaged)
	}
	return contents, f.compressed, f.first - 1, p.entries[f.first : f.first+f.entries], nil
}

// Size is the number of bytes of the patch.
func (p *Patch) Size() int64 { return p.r.Size() }

// Close closes the blob below.
func (p *Patch) Close() error { return p.r.Close() }

// open reads the index of a stored patch.
func open(ctx context.Context, s blob.Store, key string) (*Patch, error) {
	r, err := s.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	p := &Patch{r: r}
	if err := p.readIndex(); err != nil {
		return nil, errors.Join(fmt.Errorf("patch %q: %w", key, err), r.Close())
	}
	return p, nil
}

func (p *Patch) readIndex() error {
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

// parse reads the index of frames that end at offset end.
func (p *Patch) parse(ix []byte, end int64) error {
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
	for range num(uint64(len(ix))) {
		v := num(2*wire.MaxData + 1)
		if len(ix) < 4 {
			bad = true
			break
		}
		f := frame{off: off, length: v >> 1, compressed: v&1 != 0, sum: binary.LittleEndian.Uint32(ix), first: len(p.entries)}
		ix = ix[4:]
		f.entries = num(wire.MaxCount)
		for range f.entries {
			v := num(2*toc.PieceSize + 1)
			p.entries = append(p.entries, Entry{Length: v >> 1, Plain: v&1 != 0})
		}
		off += int64(f.length)
		p.frames = append(p.frames, f)
	}
	if bad || len(ix) > 0 || off != end {
		return fmt.Errorf("index: %w", ErrDamaged)
	}
	return nil
}

// writer writes a patch as it is stored.
type writer struct {
	w      io.Writer
	frames []byte // of the index
	n      int
	size   int64
}

func newWriter(w io.Writer) (*writer, error) {
	_, err := io.WriteString(w, magic)
	return &writer{w: w, size: int64(len(magic))}, err
}

func (w *writer) frame(contents []byte, compressed bool, entries []Entry) error {
	flag := uint64(0)
	if compressed {
		flag = 1
	}
	w.frames = binary.AppendUvarint(w.frames, uint64(len(contents))<<1|flag)
	w.frames = binary.LittleEndian.AppendUint32(w.frames, crc32.Checksum(contents, castagnoli))
	w.frames = binary.AppendUvarint(w.frames, uint64(len(entries)))
	for _, e := range entries {
		plain := uint64(0)
		if e.Plain {
			plain = 1
		}
		w.frames = binary.AppendUvarint(w.frames, uint64(e.Length)<<1|plain)
	}
	w.n++
	w.size += int64(len(contents))
	_, err := w.w.Write(contents)
	return err
}

func (w *writer) finish() error {
	ix := append(binary.AppendUvarint(nil, uint64(w.n)), w.frames...)
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
