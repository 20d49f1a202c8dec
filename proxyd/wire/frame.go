package wire

import (
	"errors"
	"fmt"
	"sync"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// FrameType is the first byte of a frame.
type FrameType uint8

// The frame types.
const (
	FrameProgress FrameType = 1 + iota
	FrameRetry
	FrameHeader
	FrameBlob
	FrameTOC
	FrameData
	FrameEnd
	FrameError
	FramePlan
	FrameLocal
)

var frameNames = [...]string{
	FrameProgress: "progress", FrameRetry: "retry", FrameHeader: "header", FrameBlob: "blob",
	FrameTOC: "toc", FrameData: "data", FrameEnd: "end", FrameError: "error", FramePlan: "plan", FrameLocal: "local",
}

// String returns the name that the package documentation uses.
func (t FrameType) String() string {
	if int(t) < len(frameNames) && frameNames[t] != "" {
		return frameNames[t]
	}
	return fmt.Sprintf("frame type %d", uint8(t))
}

// Kind says what an entry of a data frame's index is.
type Kind uint8

// The kinds of entries, see the package documentation.
const (
	KindPlain   Kind = iota // a piece of an object as it is
	KindBase                // what the segments of an object are to be applied to
	KindSegment             // a segment of a patch, which makes a piece
	KindX86                 // a piece with the branches of x86 machine code filtered
	KindARM64               // the same for arm64
	kinds
)

// Kinds is a set of kinds: bit k stands for kind k. Plain needs not be named.
type Kinds uint32

// The kinds that this version knows.
const (
	PatchKinds  Kinds = 1<<KindBase | 1<<KindSegment
	FilterKinds Kinds = 1<<KindX86 | 1<<KindARM64
)

// Has tells whether all of want are in the set.
func (k Kinds) Has(want Kinds) bool { return k&want == want }

// Frame flags.
const flagCompressed = 1

// preamble opens every bundle.
const preamble = "SLDB\x03\x00\x00\x00"

// ErrTruncated is wrapped by the errors about bundles that were cut off.
var ErrTruncated = errors.New("bundle is cut off")

// ErrVersion is wrapped, beside [toc.ErrInvalid], by the error about a bundle
// of a protocol version that this reader does not speak.
var ErrVersion = errors.New("protocol version is not spoken")

// Piece is an entry of a data frame's index.
type Piece struct {
	Kind   Kind
	Object uint32 // index into the image's object list
	Piece  uint32 // not of KindBase
	// Layer and Base of KindBase name the object that a patch is made against: its
	// index in TOC.Objects of the layer with this number in Header.Bases.
	Layer, Base uint32
	Length      int
}

// Data is a data frame.
type Data struct {
	Index []Piece
	// Contents are the bytes of all entries of Index, decoded; nil after
	// [Reader.Detach]. Index and Contents are valid until the next call of Next.
	Contents []byte
	// Wire is the number of bytes that the frame took on the wire.
	Wire int

	raw        []byte // the payload
	contents   []byte // within raw
	compressed bool
	size       int // of Contents
}

// Size is the number of bytes of the contents, decoded.
func (d *Data) Size() int { return d.size }

// Decode returns the contents of a frame of a detached Reader, in buf if that is
// large enough.
func (d *Data) Decode(buf []byte) ([]byte, error) {
	if !d.compressed {
		return append(buf[:0], d.contents...), nil
	}
	out, err := decompressExact(buf, d.contents, d.size)
	if err != nil {
		return nil, fmt.Errorf("bundle: data frame: %w", err)
	}
	return out, nil
}

// Release lets Readers use the memory of a detached frame again.
func (d *Data) Release() {
	if cap(d.raw) > 0 && cap(d.raw) <= keepBuffer+MaxDataIndex {
		b := d.raw[:0]
		raws.Put(&b)
	}
}

var raws = sync.Pool{New: func() any { return new([]byte) }}

// Frame is what [Reader.Next] returns. Only the field that belongs to Type is set.
type Frame struct {
	Type     FrameType
	Progress *Progress
	Header   *Header
	// Payload of a blob or toc frame, decoded; valid until the next call of Next.
	Payload []byte
	Data    *Data
	// Local is what a start reads of what the worker has.
	Local []Range
	Err   *Error
	Plan  *Plan
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("bundle: "+format+": %w", append(args, toc.ErrInvalid)...)
}
