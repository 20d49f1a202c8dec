package delta

import "sync/atomic"

// Claims is shared by a stream and the answers to the requests that come while
// it is under way, so that what one of them sends the others leave out. It is safe
// for concurrent use.
type Claims struct{ words []atomic.Uint32 }

// NewClaims returns the Claims of a plan's stream: all objects that are not in the
// plan are claimed, because the worker has them or does not need them.
func NewClaims(img *Image, p *Plan) *Claims {
	c := &Claims{words: make([]atomic.Uint32, (len(img.Objects)+31)/32)}
	open := make([]uint32, len(c.words))
	for _, id := range p.Objects {
		open[id/32] |= 1 << (id % 32)
	}
	for i, w := range open {
		c.words[i].Store(^w)
	}
	return c
}

// Claim tells whether the caller is the first to claim the object, and so is the
// one to send it.
func (c *Claims) Claim(object uint32) bool {
	if int64(object/32) >= int64(len(c.words)) {
		return false
	}
	bit := uint32(1) << (object % 32)
	return c.words[object/32].Or(bit)&bit == 0
}

// Skip is the skip function of [Stream].
func (c *Claims) Skip(object uint32) bool { return !c.Claim(object) }
