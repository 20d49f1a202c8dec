package server

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// arrival is how long a request waits for one that its worker made before it: on
	// another connection that may come later, or at another proxyd.
	arrival = 500 * time.Millisecond
	// planning is how long a request waits for the plan of another.
	planning = 5 * time.Second
	// remembered is how long a request is known: longer than a worker waits for a header
	// that is on its way to it.
	remembered = 3 * time.Second
)

// joint knows the requests that workers make at once, each under the names of worker
// and request, so that they get one plan.
type joint struct {
	mu sync.Mutex
	m  map[[2]string]*asked // guarded by mu
}

// asked is a request, which may be known before it comes because another named it.
type asked struct {
	came, planned chan struct{} // closed when it is there, and when stream is known
	arrived       atomic.Bool   // came is closed, or about to be
	once          sync.Once
	stream        *stream // nil: it brings nothing
}

func (j *joint) get(worker, request string) *asked {
	j.mu.Lock()
	defer j.mu.Unlock()
	key := [2]string{worker, request}
	a := j.m[key]
	if a == nil {
		a = &asked{came: make(chan struct{}), planned: make(chan struct{})}
		if j.m == nil {
			j.m = map[[2]string]*asked{}
		}
		j.m[key] = a
	}
	return a
}

// drop forgets a request, if that is still the one known by the name.
func (j *joint) drop(worker, request string, a *asked) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if key := [2]string{worker, request}; j.m[key] == a {
		delete(j.m, key)
	}
}

// arrive notes that a request is there. The caller calls settle once it is planned, or
// with nil when it will not be; the first call counts. A request without a name is
// known to nobody.
func (j *joint) arrive(worker, request string) (settle func(*stream)) {
	if worker == "" || request == "" {
		return func(*stream) {}
	}
	a := j.get(worker, request)
	if !a.arrived.CompareAndSwap(false, true) { // a name that was used before
		return func(*stream) {}
	}
	close(a.came)
	return func(st *stream) {
		a.once.Do(func() {
			a.stream = st
			close(a.planned)
			time.AfterFunc(remembered, func() { j.drop(worker, request, a) })
		})
	}
}

// before waits for the plans of other requests of a worker, and returns the streams of
// those that have one, with their names. What takes too long is left out: then some
// contents come twice.
func (j *joint) before(ctx context.Context, worker string, names []string) (streams []*stream, rest []string, err error) {
	if worker == "" || len(names) == 0 {
		return nil, nil, nil
	}
	late, slow := time.NewTimer(arrival), time.NewTimer(planning)
	defer late.Stop()
	defer slow.Stop()
	for _, name := range names {
		a := j.get(worker, name)
		if !await(ctx, a.came, late) {
			j.drop(worker, name, a)
		} else if await(ctx, a.planned, slow) && a.stream != nil {
			streams, rest = append(streams, a.stream), append(rest, name)
		}
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
	}
	return streams, rest, nil
}

// await waits until done, and is false if it is too late for that and for all others.
func await(ctx context.Context, done <-chan struct{}, late *time.Timer) bool {
	select {
	case <-done:
		return true
	default:
	}
	select {
	case <-done:
		return true
	case <-late.C:
		late.Reset(0)
	case <-ctx.Done():
	}
	return false
}

// planned is what streams bring of an image.
func planned(im *image, before []*stream) []delta.Inventory {
	var out []delta.Inventory
	for _, st := range before {
		t := &toc.TOC{}
		for id := range st.img.delta.Objects {
			if d := st.img.delta.Objects[id].Digest; st.claims.Planned(uint32(id)) {
				if _, ok := im.delta.Index(d); ok {
					t.Objects = append(t.Objects, toc.Object{Digest: d})
				}
			}
		}
		out = append(out, delta.Inventory{TOC: t})
	}
	return out
}

// take claims what an image is expected to read, and other streams to the worker bring
// later than its own would: they would make its start wait. plan is what it gets if it
// takes nothing.
func (s *streams) take(im *image, worker string, order delta.Order, plan *delta.Plan) []uint32 {
	if worker == "" {
		return nil
	}
	s.mu.Lock()
	var others []*stream
	for _, st := range s.m {
		if st.worker == worker {
			others = append(others, st)
		}
	}
	s.mu.Unlock()
	if len(others) == 0 {
		return nil
	}
	own := make(map[uint32]bool, plan.Hot)
	for _, it := range plan.Items[:plan.Hot] {
		own[it.Object] = true
	}
	before := make([]map[uint32]int64, len(others))
	for i, st := range others {
		before[i] = st.claims.Before()
	}
	var taken []uint32
	sum := int64(0) // bytes that this image gets before the object
	for _, it := range order.Items[:order.Hot] {
		o := &im.delta.Objects[it.Object]
		switch {
		case !im.delta.Needed(it.Object):
		case own[it.Object]:
			sum += o.Size
		default:
			for i, st := range others {
				id, ok := st.img.delta.Index(o.Digest)
				if at, hot := before[i][id]; !ok || hot && at <= sum {
					continue
				}
				if st.claims.Take(id) {
					taken = append(taken, it.Object)
					sum += o.Size
					break
				}
			}
		}
	}
	slices.Sort(taken)
	return slices.Compact(taken)
}
