package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
)

// streams are the bundles under way, by the name that their header gives.
type streams struct {
	mu      sync.Mutex
	m       map[string]*stream // guarded by mu
	landing map[string]*stream // guarded by mu: all is sent, but some of it may not have arrived
}

// stream is a bundle under way. Its name cannot be guessed and was told only to
// a worker that the registry gave the image to: who knows it may have the image's
// objects as long as the stream lasts, until the last of it has arrived.
type stream struct {
	name   string
	ref    string // "host/repo@digest"
	img    *image
	claims *delta.Claims
	failed atomic.Bool // an answer broke off that had claimed objects

	worker string // that it goes to, or ""
	plan   *delta.Plan
	hot    atomic.Bool  // it still sends what a start is expected to read
	moved  atomic.Int64 // when it last went on, Unix nanoseconds
	sent   atomic.Int64 // bytes of what is hot, from where the others were when it began
	time   atomic.Int64 // of what it sends, in the traces of its group, in milliseconds

	carried atomic.Int64  // bytes that the connection has taken
	rate    atomic.Int64  // that it carries lately, bytes a second; 0: unknown
	best    atomic.Int64  // of all rates
	settled atomic.Bool   // it will stay at that rate for a while
	search  atomic.Bool   // it should look for a better one
	hurried time.Time     // when search was set last; streams.mu guards it and the next one
	again   time.Duration // not before
}

// open registers a stream of the objects of a plan.
func (s *streams) open(ref, worker string, img *image, plan *delta.Plan) *stream {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	st := &stream{name: hex.EncodeToString(b[:]), ref: ref, img: img, claims: delta.NewClaims(img.delta, plan), worker: worker, plan: plan}
	st.hot.Store(plan.Hot > 0)
	st.moved.Store(time.Now().UnixNano())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = make(map[string]*stream)
	}
	// Who comes later begins behind the others, which let it find its pace.
	if others := s.others(st); len(others) > 0 {
		last := slices.MinFunc(others, func(a, b *stream) int { return cmp.Compare(a.sent.Load(), b.sent.Load()) })
		st.sent.Store(last.sent.Load() - lead)
	}
	s.m[st.name] = st
	return st
}

// close ends a stream. If all of it was sent, it is known for a little longer: what a
// reader asks for meanwhile is on the link already.
func (s *streams) close(st *stream, whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, st.name)
	if !whole {
		return
	}
	if s.landing == nil {
		s.landing = map[string]*stream{}
	}
	s.landing[st.name] = st
	time.AfterFunc(landing, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.landing, st.name)
	})
}

// find returns the stream if it is one of the image "name@digest".
func (s *streams) find(name, ref string) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.m[name]
	if late := s.landing[name]; late != nil && !late.failed.Load() {
		st = late
	}
	if st == nil || st.ref != ref {
		return nil
	}
	return st
}

const (
	// stuck is a stream that has not gone on for so long: nobody waits for it. With what
	// is urgent itself nobody waits for longer than slow.
	stuck, slow = 2 * time.Second, time.Second
	// turn is how often a stream looks whether it may go on.
	turn = 10 * time.Millisecond
	// lead is by how many bytes a stream may be ahead of others: enough for the link to
	// be full while a new connection finds its pace.
	lead = 4 << 20
	// leadTime is the same where traces tell when each thing is needed, in milliseconds.
	leadTime = 50
	// landing is how long what was sent may take to arrive: some buffers of the network at
	// the pace of a slow link. Who waits for longer asks again, for itself alone.
	landing = 10 * time.Second
	// idle is how long a link must have been idle by half before who waits goes on.
	idle = 150 * time.Millisecond
	// patience is how long a connection has time to find a better rate.
	patience = time.Second
)

// others lists the streams to the same worker that bring what a start is expected to
// read, and go on. s.mu is held.
func (s *streams) others(st *stream) []*stream {
	var out []*stream
	if st.worker == "" {
		return nil
	}
	for _, other := range s.m {
		if other != st && other.worker == st.worker && other.hot.Load() &&
			time.Since(time.Unix(0, other.moved.Load())) < stuck {
			out = append(out, other)
		}
	}
	return out
}

// ahead tells whether a stream must wait for others: with what no start is expected to
// read for all of them, else for those that are behind, in time where they were traced
// as one group, or in bytes.
func (s *streams) ahead(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	others := s.others(st)
	if !st.hot.Load() {
		return len(others) > 0
	}
	// One measure for all of them, or they might wait for each other.
	group := st.plan.Group
	if slices.ContainsFunc(others, func(o *stream) bool { return o.plan.Group != group }) {
		group = ""
	}
	for _, o := range others {
		switch behind := st.sent.Load() - o.sent.Load(); {
		case time.Since(time.Unix(0, o.moved.Load())) > slow:
		case group != "":
			if st.time.Load() > o.time.Load()+leadTime {
				return true
			}
		case behind > lead:
			return true
		}
	}
	return false
}

// wrote notes that the connection of st has taken n bytes more.
func (st *stream) wrote(n int, p *pacer) {
	st.carried.Add(int64(n))
	st.moved.Store(time.Now().UnixNano())
	if p == nil {
		return
	}
	if st.search.CompareAndSwap(true, false) {
		p.search()
	}
	st.rate.Store(int64(p.rate))
	st.best.Store(max(st.best.Load(), int64(p.rate)))
	st.settled.Store(p.settled)
}

// use is what the streams to a worker have carried so far, and what the fastest of them
// has carried in a second; 0 if that is unknown.
func (s *streams) use(worker string) (carried, rate int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.m {
		if st.worker == worker {
			carried += st.carried.Load()
			rate = max(rate, st.best.Load())
		}
	}
	return carried, rate
}

// hurry has the others that st waits for look for a better rate, if theirs is far from the
// rate that the link has carried. It tells whether there is something to wait for. If the
// link has become slower, they look in vain, so they do that less and less often.
func (s *streams) hurry(st *stream, rate int64) (better bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.others(st) {
		if o.settled.Load() && o.rate.Load() < rate*3/4 && time.Since(o.hurried) > o.again {
			o.hurried, o.again = time.Now(), max(patience, 2*o.again)
			o.search.Store(true)
			better = true
		}
	}
	return better
}

// pause is delta.Steer.Pause for a stream: images that are pulled together get what their
// starts read side by side, so that each is useful soon, and the rest of all comes after.
// A new connection would not get its share of the link from one that fills it. But one
// that finds its pace slowly, or has lost some packets, leaves the link idle, which helps
// nobody: then it looks for its pace again, or who waits sends something.
func (s *streams) pause(st *stream, item, size int) func(context.Context) {
	switch {
	case item >= st.plan.Hot:
		st.hot.Store(false)
	default:
		st.sent.Add(int64(size))
		if item < len(st.plan.Times) {
			st.time.Store(int64(st.plan.Times[item]))
		}
	}
	if !s.ahead(st) {
		return nil
	}
	return func(ctx context.Context) { s.wait(ctx, st) }
}

// wait waits until st may go on, or something of it is urgent.
func (s *streams) wait(ctx context.Context, st *stream) {
	t := time.NewTicker(turn)
	defer t.Stop()
	since := time.Now()
	before, _ := s.use(st.worker)
	for s.ahead(st) {
		if took := time.Since(since); took >= idle {
			carried, rate := s.use(st.worker)
			used := float64(carried-before) / took.Seconds() / max(float64(rate), 1)
			if rate > 0 && used < 0.75 && !s.hurry(st, rate) && used < 0.5 {
				return
			}
			since, before = time.Now(), carried
		}
		st.moved.Store(time.Now().UnixNano()) // it is not stuck, it waits
		select {
		case <-t.C:
		case <-st.claims.Wake():
			return
		case <-ctx.Done():
			return
		}
	}
}
