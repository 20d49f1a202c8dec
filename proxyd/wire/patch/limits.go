package patch

import (
	"errors"
	"fmt"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// PieceSize is the size of the pieces of the new object that segments make.
const PieceSize = toc.PieceSize

// Limits of patches. They bound what a patch can make its reader do, and an
// encoder keeps them.
const (
	MaxHead    = 1 << 20       // bytes of a head
	MaxSegment = PieceSize + 1 // bytes of a segment; it is never longer than its piece + 1
	MaxOps     = 1 << 16       // ops of a segment
	MaxSize    = toc.MaxObjectSize

	// maxJumps bounds how often the copies of a segment go to another block of a
	// relocated file: each may mean to relocate that block.
	maxJumps  = 1024
	maxRanges = 1 << 18 // ranges of the map
	maxParts  = 64      // of olds and of news
)

// Head is the piece number under which Encode emits the head.
const Head = -1

// ErrInvalid is wrapped by every error about a malformed or hostile patch.
var ErrInvalid = errors.New("invalid patch")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrInvalid)
}

// pieces returns the number of pieces of an object.
func pieces(size int64) int { return int((size + PieceSize - 1) / PieceSize) }

// pieceLen returns the length of one of them.
func pieceLen(size int64, piece int) int {
	return int(min(PieceSize, size-int64(piece)*PieceSize))
}

// jumps counts how often copies go to another block.
type jumps struct {
	n  int
	at int64 // block of the last byte copied, plus 1
}

func (j *jumps) add(o int64, n int) {
	if n == 0 {
		return
	}
	first, last := o/relocBlock+1, (o+int64(n)-1)/relocBlock+1
	if first != j.at {
		j.n++
	}
	j.n += int(last - first)
	j.at = last
}
