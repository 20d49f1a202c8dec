package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// Writer writes a bundle. The caller keeps the order of frames; the first error
// is returned by every call after it. A Writer is not safe for concurrent use.
//
// If the writer below it has a Flush or FlushError method, as http.ResponseWriter
// has, it is called after each frame that the other side can act on: all but
// header, blob and toc frames, which are followed by others at once. A caller
// that has nothing to send after those calls [Writer.Flush].
type Writer struct {
	w     io.Writer
	began bool
	head  []byte // type, flags, length and data index of the frame under way
	z     []byte // compressed payload of the frame under way
	n     int64
	err   error
}

// NewWriter returns a Writer to w. Nothing is written before the first frame.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Written returns the number of bytes written so far.
func (w *Writer) Written() int64 { return w.n }

// Progress writes a progress frame.
func (w *Writer) Progress(p Progress) error {
	return w.json(FrameProgress, p, true)
}

// Retry writes a retry frame, which ends the bundle.
func (w *Writer) Retry() error { return w.frame(FrameRetry, 0, nil, true) }

// Plan writes a plan frame, which ends the bundle.
func (w *Writer) Plan(p *Plan) error { return w.json(FramePlan, p, true) }

// Header writes the header.
func (w *Writer) Header(h *Header) error { return w.json(FrameHeader, h, false) }

// Blob writes the raw bytes of an index, manifest or config.
func (w *Writer) Blob(b []byte) error {
	if len(b) > MaxBlob {
		return w.fail(invalid("blob of %d bytes", len(b)))
	}
	return w.compress(FrameBlob, b, false)
}

// TOC writes an encoded TOC.
func (w *Writer) TOC(encoded []byte) error {
	if len(encoded) > MaxTOCFrame {
		return w.fail(invalid("toc of %d bytes", len(encoded)))
	}
	return w.compress(FrameTOC, encoded, false)
}

// CompressedTOC writes an encoded TOC that [Compress] has compressed before.
func (w *Writer) CompressedTOC(z []byte) error {
	return w.frame(FrameTOC, flagCompressed, z, false)
}

// Local writes a local frame.
func (w *Writer) Local(ranges []Range) error {
	b := AppendRanges(nil, ranges)
	if len(ranges) > MaxLocal || len(b) > maxLocal {
		return w.fail(invalid("local frame of %d ranges", len(ranges)))
	}
	return w.compress(FrameLocal, b, true)
}

// Data writes a data frame. contents are the bytes of all entries of index, one
// after the other, as one zstd frame if compressed.
func (w *Writer) Data(index []Piece, contents []byte, compressed bool) error {
	if w.err != nil {
		return w.err
	}
	ix := binary.AppendUvarint(w.z[:0], uint64(len(index)))
	sum := 0
	for _, p := range index {
		ix = append(ix, byte(p.Kind))
		ix = binary.AppendUvarint(ix, uint64(p.Object))
		least := 1
		if p.Kind == KindBase {
			ix = binary.AppendUvarint(ix, uint64(p.Layer))
			ix = binary.AppendUvarint(ix, uint64(p.Base))
			least = 0
		} else {
			ix = binary.AppendUvarint(ix, uint64(p.Piece))
		}
		ix = binary.AppendUvarint(ix, uint64(p.Length))
		if p.Length < least || p.Length > longest(p.Kind) {
			return w.fail(invalid("piece of %d bytes", p.Length))
		}
		sum += p.Length
	}
	w.z = ix
	switch {
	case len(index) == 0 || len(index) > MaxCount || len(ix) > MaxDataIndex:
		return w.fail(invalid("data frame with %d entries", len(index)))
	case sum > MaxData || len(contents) > MaxData:
		return w.fail(invalid("data frame of %d bytes", max(sum, len(contents))))
	case !compressed && sum != len(contents):
		return w.fail(invalid("data frame has %d bytes, its index says %d", len(contents), sum))
	}
	w.start(FrameData, flags(compressed), len(ix)+len(contents))
	w.head = append(w.head, ix...)
	w.write(w.head)
	w.write(contents)
	return w.flush()
}

// End writes the end frame.
func (w *Writer) End() error { return w.frame(FrameEnd, 0, nil, true) }

// Error writes an error frame, which ends the bundle.
func (w *Writer) Error(e *Error) error { return w.json(FrameError, e, true) }

// Flush flushes the writer below.
func (w *Writer) Flush() error {
	if w.err != nil {
		return w.err
	}
	return w.flush()
}

func (w *Writer) json(t FrameType, v any, flush bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return w.fail(fmt.Errorf("encode %s: %w", t, err))
	}
	if len(b) > MaxHeader {
		return w.fail(invalid("%s of %d bytes", t, len(b)))
	}
	return w.compress(t, b, flush)
}

func (w *Writer) compress(t FrameType, payload []byte, flush bool) error {
	z, ok := Compress(w.z, payload)
	if ok && cap(z) <= keepBuffer {
		w.z = z
	}
	return w.frame(t, flags(ok), z, flush)
}

func (w *Writer) frame(t FrameType, flags byte, payload []byte, flush bool) error {
	if w.err != nil {
		return w.err
	}
	w.start(t, flags, len(payload))
	w.write(w.head)
	w.write(payload)
	if flush {
		return w.flush()
	}
	return w.err
}

// start puts the head of a frame into w.head.
func (w *Writer) start(t FrameType, flags byte, length int) {
	w.head = w.head[:0]
	if !w.began {
		w.began = true
		w.head = append(w.head, preamble...)
	}
	w.head = append(w.head, byte(t), flags)
	w.head = binary.AppendUvarint(w.head, uint64(length))
}

func (w *Writer) write(b []byte) {
	if w.err != nil || len(b) == 0 {
		return
	}
	n, err := w.w.Write(b)
	w.n += int64(n)
	if err != nil {
		w.err = fmt.Errorf("write bundle: %w", err)
	}
}

func (w *Writer) flush() error {
	if w.err != nil {
		return w.err
	}
	switch f := w.w.(type) {
	case interface{ FlushError() error }:
		if err := f.FlushError(); err != nil {
			w.err = fmt.Errorf("flush bundle: %w", err)
		}
	case interface{ Flush() }:
		f.Flush()
	case interface{ Flush() error }:
		if err := f.Flush(); err != nil {
			w.err = fmt.Errorf("flush bundle: %w", err)
		}
	}
	return w.err
}

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return w.err
}

func flags(compressed bool) byte {
	if compressed {
		return flagCompressed
	}
	return 0
}
