package delta

import "sync/atomic"

// pieces is a set of pieces of an image's objects.
type pieces struct {
	img   *Image
	words []atomic.Uint32
}

func newPieces(img *Image) pieces {
	return pieces{img, make([]atomic.Uint32, (img.pieceAt[len(img.Objects)]+31)/32)}
}

// set adds a piece and tells whether it was not in the set. It may be called
// concurrently.
func (s pieces) set(object uint32, piece int) bool {
	n := s.img.pieceAt[object] + piece
	bit := uint32(1) << (n % 32)
	return s.words[n/32].Or(bit)&bit == 0
}

func (s pieces) has(object uint32, piece int) bool {
	n := s.img.pieceAt[object] + piece
	return s.words[n/32].Load()&(1<<(n%32)) != 0
}
