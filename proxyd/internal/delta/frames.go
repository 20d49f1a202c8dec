package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Frames is a file of data frames of one image, made by [WriteFrames] when there
// was time to compress them well. It is immutable but for Close.
//
//	file    = magic *frame index trailer
//	index   = frames(uvarint) *(length<<1|compressed(uvarint) entries(uvarint) *entry)
//	entry   = kind(1 byte) object(uvarint) piece(uvarint)
//	trailer = length of the index (8 bytes, little endian), sha256 of the index
//
// Frames lie back to back; each is the contents of a data frame as it is sent. The
// lengths of the entries are those of the pieces.
type Frames struct {
	r       FramesFile
	frames  []storedFrame
	entries []wire.Piece
	of      []int32 // by number of the piece: its frame, or -1
}

// FramesFile is where Frames are stored. ReadAt may be called concurrently.
type FramesFile interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// storedFrame is a frame of the file; its entries are those up to that of the
// frame after it.
type storedFrame struct {
	off        int64
	length     int32
	size       int32 // decoded
	first      int32 // entry
	compressed bool
}

const (
	framesMagic   = "SLFRAME\x02"
	framesTrailer = 8 + sha256.Size
	maxFrames     = 256 << 20 // bytes of an index
)

// ErrFrames is wrapped by the errors about files that are not frames of the image.
var ErrFrames = errors.New("invalid file of frames")

// OpenFrames reads the index of a file. On success the Frames own r.
func OpenFrames(r FramesFile, img *Image) (*Frames, error) {
	size := r.Size()
	head, trailer := make([]byte, len(framesMagic)), make([]byte, framesTrailer)
	if size < int64(len(head)+len(trailer)) {
		return nil, fmt.Errorf("%d bytes: %w", size, ErrFrames)
	}
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, err
	}
	if _, err := r.ReadAt(trailer, size-framesTrailer); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(trailer)
	if string(head) != framesMagic || n > maxFrames || int64(n) > size-framesTrailer-int64(len(head)) {
		return nil, fmt.Errorf("no frames of this version: %w", ErrFrames)
	}
	index := make([]byte, n)
	end := size - framesTrailer - int64(n)
	if _, err := r.ReadAt(index, end); err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(index); !bytes.Equal(sum[:], trailer[8:]) {
		return nil, fmt.Errorf("checksum of the index: %w", ErrFrames)
	}
	f := &Frames{r: r, of: make([]int32, img.pieceAt[len(img.Objects)])}
	for i := range f.of {
		f.of[i] = -1
	}
	return f, f.parse(index, end, img)
}

func (f *Frames) parse(index []byte, end int64, img *Image) error {
	ok := true
	next := func(most uint64) uint64 {
		v, n := binary.Uvarint(index)
		if n <= 0 || v > most {
			ok, index = false, nil
			return 0
		}
		index = index[n:]
		return v
	}
	off := int64(len(framesMagic))
	for range next(uint64(len(index))) {
		v := next(wire.MaxData << 1)
		s := storedFrame{off: off, length: int32(v >> 1), compressed: v&1 != 0, first: int32(len(f.entries))}
		off += int64(s.length)
		for range next(wire.MaxCount) {
			if len(index) == 0 {
				ok = false
				break
			}
			p := wire.Piece{Kind: wire.Kind(index[0])}
			index = index[1:]
			p.Object = uint32(next(uint64(len(img.Objects) - 1)))
			o := &img.Objects[p.Object]
			p.Piece = uint32(next(uint64(o.NumPieces() - 1)))
			p.Length = o.PieceLen(int(p.Piece))
			s.size += int32(p.Length)
			if !ok || p.Kind != wire.KindPlain && p.Kind != wire.KindX86 && p.Kind != wire.KindARM64 || s.size > wire.MaxData {
				return fmt.Errorf("index: %w", ErrFrames)
			}
			f.entries = append(f.entries, p)
			f.of[img.pieceAt[p.Object]+int(p.Piece)] = int32(len(f.frames))
		}
		f.frames = append(f.frames, s)
	}
	if !ok || len(index) > 0 || off != end {
		return fmt.Errorf("index: %w", ErrFrames)
	}
	return nil
}

// Close closes the file.
func (f *Frames) Close() error { return f.r.Close() }

// Cost is the memory that Frames hold, in bytes.
func (f *Frames) Cost() int64 {
	const entry, frame = 24, 32
	return int64(len(f.entries))*entry + int64(len(f.frames))*frame + int64(len(f.of))*4
}

// index returns the entries of a frame.
func (f *Frames) index(n int32) []wire.Piece {
	end := int32(len(f.entries))
	if int(n)+1 < len(f.frames) {
		end = f.frames[n+1].first
	}
	return f.entries[f.frames[n].first:end]
}

// FrameSource is Frames for one stream.
type FrameSource struct {
	Frames *Frames
	Claims *Claims
	// Objects is how many objects frames have brought besides those that were
	// due. It is valid after the stream.
	Objects int
}

// wanted is how many percent of a frame must be wanted by the worker.
const wanted = 90

// frame returns the number of the frame to be sent for a piece, which is claimed
// already, and claims all else that is in it; false if there is none, or if it has
// too much that is not wanted, or if it is too large for what is urgent.
func (s *FrameSource) frame(img *Image, object uint32, piece int, urgent bool, p *Patcher) (int32, bool) {
	n := s.Frames.of[img.pieceAt[object]+piece]
	if n < 0 {
		return 0, false
	}
	st := &s.Frames.frames[n]
	entries := s.Frames.index(n)
	if urgent && st.size > solid && len(entries) > 1 {
		return 0, false
	}
	use := 0
	for _, e := range entries {
		if e.Object == object && int(e.Piece) == piece {
			use += e.Length
			continue
		}
		if p != nil {
			if _, ok := p.Bases.Of(e.Object); ok {
				continue // is sent as a patch
			}
		}
		if s.Claims.open(e.Object, int(e.Piece)) {
			use += e.Length
		}
	}
	if use*100 < int(st.size)*wanted {
		return 0, false
	}
	for _, e := range entries {
		if s.Claims.Claim(e.Object, int(e.Piece)) && e.Piece == 0 {
			s.Objects++
		}
	}
	return n, true
}

// read fills fr with a frame.
func (s *FrameSource) read(n int32, fr *frame) error {
	st := &s.Frames.frames[n]
	if cap(fr.z) < int(st.length) {
		fr.z = make([]byte, st.length)
	}
	fr.z = fr.z[:st.length]
	if _, err := s.Frames.r.ReadAt(fr.z, st.off); err != nil {
		return fmt.Errorf("read frames: %w", err)
	}
	fr.index = append(fr.index[:0], s.Frames.index(n)...)
	fr.contents, fr.compressed = fr.z, st.compressed
	return nil
}

// machine tells by which filter a program should be filtered: KindPlain if it is none.
func machine(piece []byte) wire.Kind {
	const (
		at            = 18 // e_machine
		amd64, arm64  = 62, 183
		littleEndian  = 1
		classAndOrder = 5
	)
	if len(piece) < at+2 || string(piece[:4]) != "\x7fELF" || piece[classAndOrder] != littleEndian {
		return wire.KindPlain
	}
	switch binary.LittleEndian.Uint16(piece[at:]) {
	case amd64:
		return wire.KindX86
	case arm64:
		return wire.KindARM64
	}
	return wire.KindPlain
}
