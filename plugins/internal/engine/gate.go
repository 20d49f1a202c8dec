package engine

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// patient is how long others wait for a request of whose proxyd nothing is heard. A live
// one answers or tells of its progress within wire.ProgressInterval; others must not
// wait for a dead one until its time is up.
const patient = 2 * time.Second

// gate is the line of those that change what the node has. Requests to one proxyd are
// made while those before them are under way, and name them; their answers are taken
// in the order of the line. All else waits until nobody is before it.
type gate struct {
	mu   sync.Mutex // guards the following
	line []*place
}

// place in the line.
type place struct {
	left chan struct{} // closed when it is given up
	// request that is under way, nil for what cannot be named; and its proxy.
	request *passage
	proxy   *proxy
}

// join appends a place to the line and returns those before it.
func (g *gate) join(p *place) []*place {
	p.left = make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	before := slices.Clone(g.line)
	g.line = append(g.line, p)
	return before
}

func (g *gate) leave(p *place) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.line = slices.DeleteFunc(g.line, func(o *place) bool { return o == p })
	close(p.left)
}

// await waits until all of these have been given up.
func await(ctx context.Context, before []*place) error {
	for _, o := range before {
		select {
		case <-o.left:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// lock waits until the caller is alone, until unlock.
func (g *gate) lock(ctx context.Context) (unlock func(), err error) {
	p := &place{}
	if err := await(ctx, g.join(p)); err != nil {
		g.leave(p)
		return nil, err
	}
	return func() { g.leave(p) }, nil
}

// passage is the way of one request through the gate.
type passage struct {
	g     *gate
	name  string
	ahead []*place // requests that this one was made after
	timer *time.Timer

	mu       sync.Mutex // guards the following
	at       *place     // nil: not in the line
	stays    bool       // the timer is of no use any more
	admitted bool       // its answer was taken
}

// enter begins a request to a proxy. It waits for what is not a request to that proxy,
// or not one that can be named, and stays in the line for at most as long as the others
// are patient.
func (g *gate) enter(ctx context.Context, to *proxy) (*passage, error) {
	p := &passage{g: g, name: rand.Text()}
	p.at = &place{request: p, proxy: to}
	before := g.join(p.at)
	last := 0 // behind the last one that must be waited for
	for i, o := range before {
		if o.request == nil || o.proxy != to || len(before)-i > wire.MaxAfter {
			last = i + 1
		}
	}
	if err := await(ctx, before[:last]); err != nil {
		g.leave(p.at)
		return nil, err
	}
	p.ahead = before[last:]
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(patient, p.tire)
	return p, nil
}

// after names the requests that are under way before p.
func (p *passage) after() (names []string) {
	for _, o := range p.ahead {
		names = append(names, o.request.name)
	}
	return names
}

// first waits until the answers to the requests before p were taken, or given up.
func (p *passage) first(ctx context.Context) error { return await(ctx, p.ahead) }

// rests tells whether all of these requests before p were answered, and the answers
// taken.
func (p *passage) rests(names []string) bool {
	for _, name := range names {
		i := slices.IndexFunc(p.ahead, func(o *place) bool { return o.request.name == name })
		if i < 0 || !p.ahead[i].request.wasAdmitted() {
			return false
		}
	}
	return true
}

// admit notes that the answer was taken.
func (p *passage) admit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.admitted = true
}

func (p *passage) wasAdmitted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.admitted
}

// tire is leave, unless p has come back meanwhile.
func (p *passage) tire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stays {
		p.open()
	}
}

func (p *passage) open() {
	if p.at != nil {
		p.g.leave(p.at)
		p.at = nil
	}
}

// leave lets others go on, if p is in the line.
func (p *passage) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer.Stop()
	p.open()
}

// back makes sure that p is the first in the line, and stays until it leaves.
func (p *passage) back(ctx context.Context) error {
	p.mu.Lock()
	p.timer.Stop()
	p.stays = true
	before := p.ahead
	if p.at == nil {
		p.at = &place{} // too late to be named
		before = p.g.join(p.at)
	}
	p.mu.Unlock()
	return await(ctx, before)
}
