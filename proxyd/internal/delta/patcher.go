package delta

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// lookahead is how many bytes of changed objects are patched ahead of what is
	// being sent. What waits to be sent is a fraction of them.
	lookahead = 32 << 20
	// usualRate is what a link is taken to carry before it is measured, in bytes a
	// second.
	usualRate = 12.5e6
	// fastRate is the rate from which it must not wait for patches much.
	fastRate = 25e6
)

// Patcher makes the patches of one stream ahead of its writer.
type Patcher struct {
	Encoder *Encoder
	Bases   *Bases
	// Packs gives the packs of Bases.Layers. It may be called concurrently.
	Packs Packs
	// Rate, if not 0, is what the link is expected to carry, in bytes a second.
	Rate float64
	// Known: the link has carried Rate. If it carries less than half of that now, it is
	// the worker that is slow for a moment: a patch that comes late does not make it faster.
	Known bool
	// Link, if not nil, is asked before each write what the link is known to carry, in
	// bytes a second; 0 if that is not known now.
	Link func() float64
	// Patient waits for every patch that pays: nobody waits for the stream.
	Patient bool

	img   *Image
	plan  Packs
	spawn func(j *job, object uint32) // makes a patch in the background
	rate  atomic.Uint64               // of the link, as measured
	least float64                     // what it is taken to be whatever was measured
	slow  int                         // objects of which it was not known in time whether there is a patch; the sender's

	mu   sync.Mutex
	jobs map[uint32]*job // guarded by mu
	at   int64           // guarded by mu: bytes of the plan before what is being sent
	move chan struct{}   // guarded by mu: closed when at changes

	saved atomic.Int64
}

// Saved is how many bytes fewer than the stored pieces the segments sent had.
func (p *Patcher) Saved() int64 { return p.saved.Load() }

// job is an object that is being patched.
type job struct {
	object, base *toc.Object
	of           Base
	method       patch.Method
	head         []byte // set before the first put
	based        bool   // the base has been sent; used by the sender only

	mu      sync.Mutex
	pieces  []segment           // guarded by mu
	n       int                 // guarded by mu: pieces done with
	made    int                 // guarded by mu: segments made
	recent  [lastPass]time.Time // guarded by mu: when the last of them were, in a ring
	looking bool                // guarded by mu: the patch was made before, for all that is known
	started time.Time           // guarded by mu
	first   time.Time           // guarded by mu: when the first piece was made
	done    bool                // guarded by mu: nothing more will come
	change  chan struct{}       // guarded by mu: closed when any of it changes
}

// segment is a piece of a job; the zero segment has not been made.
type segment struct {
	enc        []byte
	compressed bool
	length     int // decoded
	plain      bool
}

// start begins to patch in g what the plan will need.
func (p *Patcher) start(ctx context.Context, g *errgroup.Group, img *Image, plan *Plan, packs Packs) {
	p.img, p.plan = img, packs
	p.spawn = func(j *job, object uint32) {
		g.Go(func() error {
			defer j.finish()
			// A patch that fails does not matter: the object is sent plain, which
			// fails for the same reason, or does not. Its goroutine ends here.
			_ = background.Guard(func() error { return p.encode(ctx, j, object) })()
			return nil
		})
	}
	p.jobs, p.move, p.least = map[uint32]*job{}, make(chan struct{}), 0
	if p.Known {
		p.least = p.Rate / 2
	}
	if p.Rate == 0 {
		p.Rate = usualRate
	}
	g.Go(func() error {
		var at int64
		for n, it := range plan.Items {
			if _, ok := p.Bases.Of(it.Object); ok {
				if err := p.wait(ctx, at); err != nil {
					return nil //nolint:nilerr // the stream has ended
				}
				p.job(it.Object, n < plan.Hot)
			}
			at += img.bytesOf(it)
		}
		return nil
	})
}

// bytesOf is the bytes of the pieces of an item.
func (img *Image) bytesOf(it Item) int64 {
	o := &img.Objects[it.Object]
	first, end := clip(it, o.NumPieces())
	return min(int64(end)*toc.PieceSize, o.Size) - int64(first)*toc.PieceSize
}

// wait blocks until the sender is near the byte number at of the plan.
func (p *Patcher) wait(ctx context.Context, at int64) error {
	for {
		p.mu.Lock()
		near, move := at < p.at+lookahead, p.move
		p.mu.Unlock()
		if near {
			return nil
		}
		select {
		case <-move:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// advance tells that n bytes of the plan are done with.
func (p *Patcher) advance(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at += int64(n)
	close(p.move)
	p.move = make(chan struct{})
}

// job returns the job of an object, which it starts if need be; nil: has no base.
func (p *Patcher) job(object uint32, hot bool) *job {
	p.mu.Lock()
	defer p.mu.Unlock()
	if j := p.jobs[object]; j != nil {
		return j
	}
	base, ok := p.Bases.Of(object)
	if !ok {
		return nil
	}
	o := &p.img.Objects[object]
	j := &job{
		object: o, base: p.Bases.Object(base), of: base, method: patch.Auto,
		pieces: make([]segment, o.NumPieces()), change: make(chan struct{}), looking: p.Encoder.stored != nil,
	}
	if o.Size > patch.AutoRD || p.fast() || hot {
		j.method = patch.HD
	}
	p.jobs[object] = j
	p.spawn(j, object)
	return j
}

func (p *Patcher) encode(ctx context.Context, j *job, object uint32) error {
	at := p.img.places[object]
	from := Source{j.base, p.Bases.Layers[j.of.Layer].DiffID, int(j.of.Object)}
	to := Source{j.object, p.img.diffIDs[at.Layer], at.Object}
	if found, err := p.Encoder.load(ctx, j, from, to); found || err != nil {
		return err
	}
	j.looked()
	old, err := p.Packs(ctx, j.of.Layer)
	if err != nil {
		return err
	}
	nw, err := p.plan(ctx, at.Layer)
	if err != nil {
		return err
	}
	return p.Encoder.run(ctx, j, old, nw, from, to)
}

// linkRate is what the link carries, in bytes a second.
func (p *Patcher) linkRate() float64 {
	if r := p.rate.Load(); r > 0 {
		return max(float64(r), p.least)
	}
	return p.Rate
}

func (p *Patcher) fast() bool { return p.linkRate() >= fastRate }

// lastPass is how many pieces tell how fast the last pass over an object goes.
const lastPass = 16

// maxPatience bounds how long a stream waits for a patch that saves bytes, not time.
const maxPatience = 250 * time.Millisecond

// maxLook is how long a stream waits to learn whether a patch was made before, which takes a
// fraction of that. It has this patience for maxSlow objects.
const (
	maxLook = 50 * time.Millisecond
	maxSlow = 4
)

// patience is how long an object may hold the stream up, if what is left of it takes plain
// to be sent as it is stored. What a reader probably waits for
// must be there sooner than without patches. The rest may take a little longer if it
// is smaller, but on a fast link it need not be.
func (p *Patcher) patience(plain time.Duration, hot bool) time.Duration {
	switch {
	case p.Patient:
		return math.MaxInt64
	case p.fast():
		return plain / 2
	case hot:
		return plain * 3 / 4
	}
	return max(plain*3/4, min(2*plain+50*time.Millisecond, maxPatience))
}

// take returns the segment of a piece, once, and its job; the zero segment if the piece
// should be sent plain, or, if change is not nil, asked for again when that is closed or
// after the time it will probably take. stored is the size of the pieces of the object that
// are not sent yet, as they would be sent plain, and waited for how long the stream has
// been held up for this piece; with hurry it must not be.
func (p *Patcher) take(object uint32, piece int, stored int64, waited time.Duration, hot, hurry bool) (j *job, s segment, change <-chan struct{}, wait time.Duration) {
	if j = p.job(object, hot); j == nil {
		return nil, segment{}, nil, 0
	}
	plain := time.Duration(float64(stored) / p.linkRate() * float64(time.Second))
	j.mu.Lock()
	defer j.mu.Unlock()
	s = j.pieces[piece]
	if s.length > 0 {
		j.pieces[piece] = segment{plain: true} // if asked for again
		return j, s, nil, 0
	}
	if j.looking && !j.done && p.slow < maxSlow {
		if waited < maxLook {
			return j, segment{}, j.change, maxLook - waited
		}
		p.slow++
	}
	// The stream would wait for all of the object, a little for each piece.
	wait, rest := p.left(j, piece)
	if s.plain || j.done || hurry || waited+rest > p.patience(plain, hot) {
		j.pieces[piece].plain = true
		return j, segment{}, nil, 0
	}
	return j, segment{}, j.change, max(wait, time.Millisecond)
}

// skip tells whether a piece was sent without its segment, which need not be made any more.
func (j *job) skip(piece int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.pieces[piece].plain
}

// useless tells whether all pieces of j were sent.
func (j *job) useless() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !slices.ContainsFunc(j.pieces, func(s segment) bool { return !s.plain })
}

// left is the time that a piece, and all that is left of the object, will probably take to
// be made. j.mu is held.
func (p *Patcher) left(j *job, piece int) (wait, rest time.Duration) {
	pace := float64(p.Encoder.pace[paceOf(j.method)].Load())
	whole := time.Duration(float64(j.object.Size) / pace * float64(time.Second))
	if j.started.IsZero() {
		return whole * time.Duration(piece+1) / time.Duration(len(j.pieces)), whole
	}
	if j.n == 0 { // all passes but the last come before the first piece
		spent := time.Since(j.started)
		rest = max(whole-spent, spent/2)
		return rest, rest
	}
	each := max(whole-j.first.Sub(j.started), whole/10) / time.Duration(len(j.pieces))
	if j.made > lastPass {
		// Programs have parts that take several times as long as others.
		each = max(time.Since(j.first)/time.Duration(j.made-1), time.Since(j.recent[j.made%lastPass])/lastPass)
	}
	return each * time.Duration(piece+1-j.n), each * time.Duration(len(j.pieces)-j.n)
}

// begin tells that the encoding has begun.
func (j *job) begin(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.started = now
}

// put adds a piece.
func (j *job) put(piece int, s segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.pieces[piece].plain { // it was sent meanwhile
		j.pieces[piece] = s
	}
	now := time.Now()
	if j.n = piece + 1; j.first.IsZero() {
		j.first = now
	}
	j.recent[j.made%lastPass] = now
	j.made++
	j.changed()
}

// looked tells that the patch was not made before.
func (j *job) looked() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.looking = false
	j.changed()
}

// finish tells that nothing more will come.
func (j *job) finish() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.done = true
	j.changed()
}

// changed wakes who waits. j.mu is held.
func (j *job) changed() {
	close(j.change)
	j.change = make(chan struct{})
}

// load takes a stored patch.
func (j *job) load(p Patch) error {
	head, err := p.Head()
	if err != nil {
		return err
	}
	j.head = head
	for i := range j.object.NumPieces() {
		enc, compressed, length, err := p.Segment(i)
		if err != nil {
			return err
		}
		if compressed && j.object.Size < SmallObject {
			if enc, err = wire.Decompress(nil, enc, length); err != nil {
				return err
			}
			compressed = false
		}
		j.put(i, segment{enc: enc, compressed: compressed, length: length, plain: length == 0})
	}
	return nil
}
