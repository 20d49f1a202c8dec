package server

import (
	"io"
	"sync/atomic"
)

// refs closes what is shared when all who acquired it have released it. It begins
// with one reference, the cache's.
type refs struct {
	n *atomic.Int64
	c io.Closer
}

func newRefs(c io.Closer) refs {
	r := refs{new(atomic.Int64), c}
	r.n.Store(1)
	return r
}

// acquire fails if it has been closed.
func (r refs) acquire() bool {
	for {
		n := r.n.Load()
		if n == 0 {
			return false
		}
		if r.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (r refs) release() {
	if r.n.Add(-1) == 0 {
		// It was only read from.
		_ = r.c.Close()
	}
}
