package wire

import (
	"errors"
	"fmt"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// FrameType is the first byte of a frame.
type FrameType uint8

// The frame types, in the order in which they may occur.
const (
	FrameProgress FrameType = 1 + iota
	FrameRetry
	FrameHeader
	FrameBlob
	FrameTOC
	FrameData
	FrameEnd
	FrameError
)

var frameNames = [...]string{
	FrameProgress: "progress", FrameRetry: "retry", FrameHeader: "header", FrameBlob: "blob",
	FrameTOC: "toc", FrameData: "data", FrameEnd: "end", FrameError: "error",
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

// KindPlain is a piece of an object as it is.
const KindPlain Kind = 0

// Frame flags.
const flagCompressed = 1

// preamble opens every bundle.
const preamble = "SLDB\x02\x00\x00\x00"

// ErrTruncated is wrapped by the errors about bundles that were cut off.
var ErrTruncated = errors.New("bundle is cut off")

// ErrVersion is wrapped, beside [toc.ErrInvalid], by the error about a bundle
// of a protocol version that this reader does not speak.
var ErrVersion = errors.New("protocol version is not spoken")

// Piece is an entry of a data frame's index.
type Piece struct {
	Kind   Kind
	Object uint32 // index into the image's object list
	Piece  uint32
	Length int
}

// Data is a decoded data frame.
type Data struct {
	Index []Piece
	// Contents are the bytes of all entries of Index, decoded. Index and
	// Contents are valid until the next call of Next.
	Contents []byte
	// Wire is the number of bytes that the frame took on the wire.
	Wire int
}

// Frame is what [Reader.Next] returns. Only the field that belongs to Type is set.
type Frame struct {
	Type     FrameType
	Progress *Progress
	Header   *Header
	// Payload of a blob or toc frame, decoded; valid until the next call of Next.
	Payload []byte
	Data    *Data
	Err     *Error
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("bundle: "+format+": %w", append(args, toc.ErrInvalid)...)
}
