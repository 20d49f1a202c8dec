package pack

import (
	"encoding/binary"
	"fmt"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// index is the decoded index of a pack.
type index struct {
	// frames holds for each frame its offset << 1 | compressed, and one element
	// more for the end of the last.
	frames []uint64
	sizes  []int64  // of the objects
	first  []uint32 // of each object, the place of its first piece in refs
	refs   []uint32 // of each piece, its frame
}

// Objects is the number of objects; they are numbered as TOC.Objects.
func (x *index) Objects() int { return len(x.sizes) }

// Size is the size in bytes of an object.
func (x *index) Size(object int) int64 { return x.sizes[object] }

// Pieces is the number of pieces of an object.
func (x *index) Pieces(object int) int { return int(pieces(x.sizes[object])) }

// PieceLen is the plain length of a piece.
func (x *index) PieceLen(object, piece int) int { return pieceLen(x.sizes[object], piece) }

// StoredLen is the length of a piece as it is stored.
func (x *index) StoredLen(object, piece int) int {
	_, n, _ := x.frame(object, piece)
	return n
}

// frame tells where a piece is.
func (x *index) frame(object, piece int) (off int64, length int, compressed bool) {
	if piece < 0 || int64(piece) >= pieces(x.sizes[object]) {
		panic(fmt.Sprintf("pack: object %d has no piece %d", object, piece))
	}
	f := x.refs[int(x.first[object])+piece]
	v := x.frames[f]
	return int64(v >> 1), int(x.frames[f+1]>>1 - v>>1), v&1 != 0
}

// decodeIndex decodes the index of a pack whose frames end at end.
func decodeIndex(enc []byte, end int64) (*index, error) {
	d := decoding{b: enc}
	x := &index{}
	x.decodeFrames(&d, uint64(end))
	x.decodeObjects(&d)
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes are left over", len(d.b))
	}
	if d.err != nil {
		return nil, d.err
	}
	return x, nil
}

func (x *index) decodeFrames(d *decoding, end uint64) {
	n := d.count()
	x.frames = make([]uint64, 0, n+1)
	off := uint64(len(head))
	for range n {
		v := d.uvarint()
		length := v >> 1
		if length == 0 || length > toc.PieceSize {
			d.fail("a frame of %d bytes", length)
		}
		if d.err != nil {
			return
		}
		x.frames = append(x.frames, off<<1|v&1)
		off += length
	}
	x.frames = append(x.frames, off<<1)
	if off != end {
		d.fail("frames end at byte %d, not at %d", off, end)
	}
}

func (x *index) decodeObjects(d *decoding) {
	n := d.count()
	x.sizes, x.first = make([]int64, 0, n), make([]uint32, 0, n)
	plain := make([]uint32, max(len(x.frames), 1)-1) // length of each frame's piece; 0: not seen
	x.refs = make([]uint32, 0, len(plain))
	var next int64
	for range n {
		v := d.uvarint()
		if v == 0 || v > toc.MaxObjectSize {
			d.fail("an object of %d bytes", v)
			return
		}
		size := int64(v)
		// A ref takes a byte: this is what bounds the memory for them.
		if pieces(size) > int64(len(d.b)) {
			d.fail("an object of %d bytes without its frames", size)
			return
		}
		x.sizes = append(x.sizes, size)
		x.first = append(x.first, uint32(len(x.refs)))
		for p := range int(pieces(size)) {
			f := next + d.varint()
			if d.err != nil || f < 0 || f >= int64(len(plain)) {
				d.fail("frame %d of %d", f, len(plain))
				return
			}
			x.refs = append(x.refs, uint32(f))
			next = f + 1
			x.checkPiece(d, plain, f, pieceLen(size, p))
		}
	}
}

// checkPiece checks that frame f can hold a piece of n bytes.
func (x *index) checkPiece(d *decoding, plain []uint32, f int64, n int) {
	if plain[f] != 0 && plain[f] != uint32(n) {
		d.fail("frame %d is for pieces of %d and %d bytes", f, plain[f], n)
	}
	plain[f] = uint32(n)
	v := x.frames[f]
	stored, compressed := int(x.frames[f+1]>>1-v>>1), v&1 != 0
	if (compressed && stored >= n) || (!compressed && stored != n) {
		d.fail("frame %d of %d bytes is for a piece of %d", f, stored, n)
	}
}

// decoding reads numbers; after the first error it reads zeros.
type decoding struct {
	b   []byte
	err error
}

func (d *decoding) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("index: "+format+": %w", append(args, ErrInvalid)...)
	}
	d.b = nil
}

func (d *decoding) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("truncated number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoding) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("truncated number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads a number of things each of which takes at least a byte.
func (d *decoding) count() int {
	v := d.uvarint()
	if v > uint64(len(d.b)) {
		d.fail("%d elements in %d bytes", v, len(d.b))
		return 0
	}
	return int(v)
}
