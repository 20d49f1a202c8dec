package delta

import "sync"

// Claims is shared by a stream and the answers to the requests that come while
// it is under way, so that what one of them sends the others leave out. It is safe
// for concurrent use.
type Claims struct {
	img     *Image
	plan    *Plan
	planned pieces // of the plan
	claimed pieces

	wake chan struct{} // something has become urgent

	mu     sync.Mutex
	urgent []Item // guarded by mu
	done   bool   // guarded by mu: the stream takes nothing urgent any more
}

// NewClaims returns the Claims of a plan's stream. What is not in the plan cannot
// be claimed, because the worker has it or does not need it.
func NewClaims(img *Image, p *Plan) *Claims {
	c := &Claims{img: img, wake: make(chan struct{}, 1), plan: p, planned: newPieces(img), claimed: newPieces(img)}
	for _, it := range p.Items {
		for i := range it.Pieces {
			c.planned.set(it.Object, int(it.First+i))
		}
	}
	return c
}

// Planned tells whether the stream was to bring an object, or what is missing of it.
func (c *Claims) Planned(object uint32) bool {
	for i := range c.img.Objects[object].NumPieces() {
		if c.planned.has(object, i) {
			return true
		}
	}
	return false
}

// Before returns, for each object of which the stream still brings hot pieces, how many
// bytes of hot ones it brings before the first of them.
func (c *Claims) Before() map[uint32]int64 {
	before := map[uint32]int64{}
	sum := int64(0)
	for _, it := range c.plan.Items[:c.plan.Hot] {
		for i := range int(it.Pieces) {
			if piece := int(it.First) + i; c.open(it.Object, piece) {
				if _, ok := before[it.Object]; !ok {
					before[it.Object] = sum
				}
				sum += int64(c.img.Objects[it.Object].PieceLen(piece))
			}
		}
	}
	return before
}

// Take claims a whole object for another stream to the same worker, if nothing of it
// was sent or is about to be. What the stream may be in the midst of comes twice.
func (c *Claims) Take(object uint32) bool {
	n := c.img.Objects[object].NumPieces()
	for i := range n {
		if !c.open(object, i) {
			return false
		}
	}
	for i := range n {
		c.claimed.set(object, i)
	}
	return true
}

// Claim tells whether the caller is the first to claim the piece, and so is the
// one to send it.
func (c *Claims) Claim(object uint32, piece int) bool {
	return c.planned.has(object, piece) && c.claimed.set(object, piece)
}

// open tells whether a piece is of the plan and nobody has claimed it.
func (c *Claims) open(object uint32, piece int) bool {
	return c.planned.has(object, piece) && !c.claimed.has(object, piece)
}

// Skip is the function of [Steer].
func (c *Claims) Skip(object uint32, piece int) bool { return !c.Claim(object, piece) }

// Urge makes what is not sent yet the next of the stream, with small neighbours
// that will probably be read after it. It returns what the stream will not bring;
// all else is on its way. The objects exist.
func (c *Claims) Urge(asked []Item, exact bool) (rest []Item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var urged []Item
	sent := map[uint32]bool{}
	for _, it := range asked {
		first, end := clip(it, c.img.Objects[it.Object].NumPieces())
		for i := first; i < end; i++ {
			switch {
			case !c.planned.has(it.Object, i):
				rest = extend(rest, it.Object, i)
			case !c.claimed.set(it.Object, i): // sent, or about to be
			case c.done:
				rest = extend(rest, it.Object, i)
			default:
				urged = extend(urged, it.Object, i)
				sent[it.Object] = true
			}
		}
	}
	if len(urged) > 0 && !exact {
		urged = append(urged, neighbours(c.img, urged, sent, c)...)
	}
	c.urgent = append(c.urgent, urged...)
	if len(urged) > 0 {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	return rest
}

// Wake tells, to whoever waits for a turn, that something has become urgent.
func (c *Claims) Wake() <-chan struct{} { return c.wake }

// Urgent is the function of [Steer].
func (c *Claims) Urgent(last bool) []Item {
	c.mu.Lock()
	defer c.mu.Unlock()
	items := c.urgent
	c.urgent = nil
	c.done = last && len(items) == 0
	return items
}
