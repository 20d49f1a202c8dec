package delta

import (
	"sync"
	"sync/atomic"
)

// Claims is shared by a stream and the answers to the requests that come while
// it is under way, so that what one of them sends the others leave out. It is safe
// for concurrent use.
type Claims struct {
	img     *Image
	words   []atomic.Uint32
	planned []uint32 // bits of the objects of the plan

	mu     sync.Mutex
	urgent []uint32 // guarded by mu
	done   bool     // guarded by mu: the stream takes no urgent objects any more
}

// NewClaims returns the Claims of a plan's stream: all objects that are not in the
// plan are claimed, because the worker has them or does not need them.
func NewClaims(img *Image, p *Plan) *Claims {
	n := (len(img.Objects) + 31) / 32
	c := &Claims{img: img, words: make([]atomic.Uint32, n), planned: make([]uint32, n)}
	for _, id := range p.Objects {
		c.planned[id/32] |= 1 << (id % 32)
	}
	for i, w := range c.planned {
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

// Urge makes objects that are not sent yet the next of the stream, with small
// neighbours that will probably be read after them. It returns those that the
// stream will not bring; all others are on their way. The objects exist.
func (c *Claims) Urge(asked []uint32, exact bool) (rest []uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var urged []uint32
	sent := map[uint32]bool{}
	for _, id := range asked {
		switch {
		case c.done, c.planned[id/32]&(1<<(id%32)) == 0:
			rest = append(rest, id)
		case c.Claim(id):
			urged = append(urged, id)
			sent[id] = true
		}
	}
	if len(urged) > 0 && !exact {
		urged = append(urged, neighbours(c.img, urged, sent, c)...)
	}
	c.urgent = append(c.urgent, urged...)
	return rest
}

// Urgent is the function of [Steer].
func (c *Claims) Urgent(last bool) []uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := c.urgent
	c.urgent = nil
	c.done = last && len(ids) == 0
	return ids
}
