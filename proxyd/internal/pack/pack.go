package pack

import (
	"errors"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// ErrInvalid is wrapped by every error about a malformed pack.
var ErrInvalid = errors.New("invalid pack")

const (
	head        = "SLPACK\x02\x00"
	tail        = "SLPACKED"
	trailerSize = 8 + 32 + len(tail)

	// maxIndex bounds what is read into memory for one pack: an index of the 4 Mi
	// objects that a TOC may have takes some 40 MiB.
	maxIndex = 512 << 20
)

// Object is where the bytes of an object are: the frames of its pieces.
type Object struct {
	Size   int64
	Frames []uint32
}

// pieces is the number of pieces of an object.
func pieces(size int64) int64 { return (size + toc.PieceSize - 1) / toc.PieceSize }

// pieceLen is the length of a piece of an object.
func pieceLen(size int64, piece int) int {
	return int(min(size-int64(piece)*toc.PieceSize, toc.PieceSize))
}
