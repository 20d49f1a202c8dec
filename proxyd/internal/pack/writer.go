package pack

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Writer writes a pack: first all frames, then the index. It is not safe for
// concurrent use.
type Writer struct {
	w       io.Writer
	lengths []byte // of the frames, as in the index
	frames  uint32
}

// NewWriter begins a pack. The caller closes w.
func NewWriter(w io.Writer) (*Writer, error) {
	if _, err := io.WriteString(w, head); err != nil {
		return nil, fmt.Errorf("write pack: %w", err)
	}
	return &Writer{w: w}, nil
}

// Frame appends a frame, as Encode made it. Frames are numbered from 0 on.
func (w *Writer) Frame(enc []byte, compressed bool) error {
	if len(enc) == 0 || len(enc) > toc.PieceSize || w.frames == math.MaxUint32 {
		return fmt.Errorf("frame %d of %d bytes: %w", w.frames, len(enc), ErrInvalid)
	}
	if _, err := w.w.Write(enc); err != nil {
		return fmt.Errorf("write pack: %w", err)
	}
	v := uint64(len(enc)) << 1
	if compressed {
		v |= 1
	}
	w.lengths = binary.AppendUvarint(w.lengths, v)
	w.frames++
	return nil
}

// Finish writes the index. The objects are those of the layer's TOC, in its order.
func (w *Writer) Finish(objects []Object) error {
	idx := binary.AppendUvarint(nil, uint64(w.frames))
	idx = append(idx, w.lengths...)
	idx = binary.AppendUvarint(idx, uint64(len(objects)))
	var next int64
	for i, o := range objects {
		if o.Size <= 0 || o.Size > toc.MaxObjectSize || pieces(o.Size) != int64(len(o.Frames)) {
			return fmt.Errorf("object %d of %d bytes has %d frames: %w", i, o.Size, len(o.Frames), ErrInvalid)
		}
		idx = binary.AppendUvarint(idx, uint64(o.Size))
		for _, f := range o.Frames {
			if f >= w.frames {
				return fmt.Errorf("object %d has frame %d of %d: %w", i, f, w.frames, ErrInvalid)
			}
			idx = binary.AppendVarint(idx, int64(f)-next)
			next = int64(f) + 1
		}
	}
	if len(idx) > maxIndex {
		return fmt.Errorf("index of %d bytes: %w", len(idx), ErrInvalid)
	}
	sum := sha256.Sum256(idx)
	idx = binary.LittleEndian.AppendUint64(idx, uint64(len(idx)))
	idx = append(idx, sum[:]...)
	idx = append(idx, tail...)
	if _, err := w.w.Write(idx); err != nil {
		return fmt.Errorf("write pack: %w", err)
	}
	return nil
}

// minCompress is the length below which a zstd frame, with its header and
// checksum, does not pay.
const minCompress = 48

// encoder compresses pieces; no more of them at a time than there are
// processors. A larger window than a piece would only cost memory.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithWindowSize(toc.PieceSize),
		zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		panic(err) // constant options
	}
	return e
})

// Encode appends the frame of a piece to dst and tells whether it is
// compressed. It may be called concurrently.
func Encode(dst, plain []byte) (enc []byte, compressed bool) {
	if len(plain) >= minCompress {
		enc = encoder().EncodeAll(plain, dst)
		if len(enc)-len(dst) < len(plain) {
			return enc, true
		}
	}
	return append(dst, plain...), false
}
