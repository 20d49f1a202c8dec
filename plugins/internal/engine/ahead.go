package engine

import (
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// minAhead is how many pieces of a large object a request asks for. Who waits for one
	// that nobody foresaw soon needs others near it, and each would cost a round trip.
	minAhead = 1 << 20 / toc.PieceSize
	// maxAhead bounds the pieces that one request asks for beyond those that a
	// reader waits for: 16 MiB are two seconds of 100 Mbit/s at a usual compression.
	maxAhead = 16 << 20 / toc.PieceSize
	// soon is how many pieces may be between the one that a stream brought last
	// and one that it will bring without being asked.
	soon = 4
)

// pieceRange is the pieces of an object that hold the bytes [off, off+n).
func pieceRange(o *toc.Object, object uint32, off, n int64) wire.Range {
	first := min(off/toc.PieceSize, int64(o.NumPieces()-1))
	last := min((off+n-1)/toc.PieceSize, int64(o.NumPieces()-1))
	return wire.Range{Object: object, First: uint32(first), Pieces: uint32(last - first + 1)}
}

// widen makes a range longer if it goes on where the one before it ended: who
// reads a large object from one end to the other shall not wait a round trip for
// each piece. The first pieces come first. demands.mu is held.
func (q *demands) widen(r wire.Range, pieces int) wire.Range {
	if pieces == 1 {
		return r
	}
	before, ok := q.last[r.Object]
	r.Pieces = max(r.Pieces, minAhead)
	if ok && r.First > before.First && r.First <= before.First+before.Pieces {
		r.Pieces = max(r.Pieces, min(2*before.Pieces, maxAhead))
	}
	r.Pieces = min(r.Pieces, uint32(pieces)-r.First)
	q.last[r.Object] = r
	return r
}

// coming tells whether a stream is just bringing the range.
func (e *Engine) coming(d toc.Digest, r wire.Range) bool {
	last, ok := e.streaming.Load(d)
	return ok && r.First > last.(uint32) && r.First <= last.(uint32)+soon
}
