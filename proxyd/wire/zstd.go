package wire

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// maxWindow bounds what a peer's zstd frame makes a decoder hold.
const maxWindow = 8 << 20

// encoders hold about 1 MiB each; concurrency 1 keeps them from starting
// goroutines and from holding a table per processor.
var encoders = sync.Pool{New: func() any {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(1<<20),
		zstd.WithEncoderCRC(false), // every object has its sha256
		zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		panic(err) // the options are constants
	}
	return enc
}}

// decoders never trust the sizes that a frame declares: DecodeAll stays within
// the capacity it is given, and streams are read up to a limit.
var decoders = sync.Pool{New: func() any {
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecoderMaxMemory(MaxTOCFrame+1),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return dec
}}

// Compress appends src as one zstd frame to dst[:0] and returns it with true; if
// that does not pay, it returns src itself and false. Equal inputs give equal
// outputs.
func Compress(dst, src []byte) ([]byte, bool) {
	const tooSmall = 64
	if len(src) < tooSmall {
		return src, false
	}
	enc := encoders.Get().(*zstd.Encoder)
	defer encoders.Put(enc)
	out := enc.EncodeAll(src, dst[:0])
	if len(out) >= len(src)-len(src)/64 {
		return src, false
	}
	return out, true
}

// Decompress decodes what [Compress] has compressed, of which the size is known,
// into buf if that is large enough.
func Decompress(buf, src []byte, size int) ([]byte, error) { return decompressExact(buf, src, size) }

// decompressExact decodes src to exactly size bytes, into buf if it is large enough.
func decompressExact(buf, src []byte, size int) ([]byte, error) {
	if cap(buf) < size {
		buf = make([]byte, size)
	}
	dec := decoders.Get().(*zstd.Decoder)
	defer decoders.Put(dec)
	out, err := dec.DecodeAll(src, buf[:0:size])
	if err != nil {
		return buf, fmt.Errorf("zstd: %w: %w", err, toc.ErrInvalid)
	}
	if len(out) != size {
		return buf, fmt.Errorf("zstd: %d bytes decoded, want %d: %w", len(out), size, toc.ErrInvalid)
	}
	return out, nil
}

// decompressLimit decodes src into buf, which grows with what is really
// decoded and never beyond limit.
func decompressLimit(buf, src []byte, limit int) ([]byte, error) {
	dec := decoders.Get().(*zstd.Decoder)
	defer decoders.Put(dec)
	if err := dec.Reset(bytes.NewReader(src)); err != nil {
		return buf, fmt.Errorf("zstd: %w: %w", err, toc.ErrInvalid)
	}
	defer func() { _ = dec.Reset(nil) }() // lets go of src
	return readLimit(buf, dec, limit)
}

// readLimit reads r to its end into buf, refusing more than limit bytes.
func readLimit(buf []byte, r io.Reader, limit int) ([]byte, error) {
	b := bytes.NewBuffer(buf[:0])
	n, err := b.ReadFrom(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return b.Bytes(), fmt.Errorf("%w: %w", err, toc.ErrInvalid)
	}
	if n > int64(limit) {
		return b.Bytes(), fmt.Errorf("more than %d bytes: %w", limit, toc.ErrInvalid)
	}
	return b.Bytes(), nil
}
