package engine

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/starlight-delta/starlight/plugins/internal/delta"
	"github.com/starlight-delta/starlight/plugins/internal/lazyfs"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// grace is how long a reader waits for the stream before its object is asked
	// for: what is next in the stream needs no request of its own.
	grace = 10 * time.Millisecond
	// maxDemands is how many requests on demand an image has under way. What is
	// wanted meanwhile goes together into the next.
	maxDemands = 4
	// maxBatch is the number of ranges in one of them.
	maxBatch = 256
	// demandPause is how long to wait for an object that was asked for before it
	// is asked for again. If it is in a stream, that goes on flowing meanwhile;
	// then patience is longer, up to maxDemandPause.
	demandPause, maxDemandPause = 250 * time.Millisecond, 5 * time.Second
)

// demands are the pieces of an image's objects that readers wait for.
type demands struct {
	mu      sync.Mutex // guards the following fields
	wanted  map[wire.Range]*demand
	last    map[uint32]wire.Range // of a large object: the range asked for last
	queue   []*demand
	running int
}

// demand is one range asked for.
type demand struct {
	wanted   wire.Range // by a reader
	asked    wire.Range // begins with wanted
	answered chan struct{}
	again    bool // its stream was told before, and did not bring it
}

func newDemands() *demands {
	return &demands{wanted: map[wire.Range]*demand{}, last: map[uint32]wire.Range{}}
}

var _ lazyfs.Source = (*Engine)(nil)

// Range blocks until bytes [off, off+n) of d are on the disk and checked. It asks
// for the pieces at once, unless a stream is just bringing them. It fails with
// errdefs.ErrNotFound for objects of no image, and with errdefs.ErrUnavailable
// when nothing has arrived for Config.ReadTimeout.
func (e *Engine) Range(ctx context.Context, d toc.Digest, off, n int64) (err error) {
	if e.objects.Has(d) {
		return nil
	}
	done := e.metrics.read()
	defer func() { done(err) }()
	start := time.Now()
	defer func() { e.waited(d, off, n, start) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	arrival := make(chan error, 1)
	go func() { arrival <- e.objects.Wait(ctx, d, off, n) }()

	var asked time.Time
	for pause := grace; ; {
		t := time.NewTimer(pause)
		select {
		case err := <-arrival:
			t.Stop()
			log.G(ctx).WithFields(log.Fields{"object": d, "offset": off, "wait": time.Since(start), "asked": !asked.IsZero()}).Debug("a reader waited")
			return err
		case <-t.C:
		}
		img, p, i := e.find(d)
		if img == nil {
			if e.objects.Has(d) {
				return nil
			}
			return fmt.Errorf("object %s belongs to no image: %w", d, errdefs.ErrNotFound)
		}
		last := time.Unix(0, img.meter.last.Load())
		if e.cfg.ReadTimeout > 0 && time.Since(start) > e.cfg.ReadTimeout && time.Since(last) > e.cfg.ReadTimeout {
			return fmt.Errorf("object %s of %s: nothing has arrived for %v: %w", d, e.sourceOf(img).ref, e.cfg.ReadTimeout, errdefs.ErrUnavailable)
		}
		wanted := pieceRange(&p.list[i], i, off, n)
		if e.coming(d, wanted) {
			pause = 2 * grace // the stream may turn to something else
			continue
		}
		pause = demandPause
		if !asked.IsZero() && time.Since(e.flowed(img)) < 2*demandPause && time.Since(asked) < maxDemandPause {
			continue // it is next in a stream that flows
		}
		again := !asked.IsZero()
		asked = time.Now()
		select {
		case err := <-arrival:
			return err
		case <-e.demand(img, p, wanted, again):
		}
	}
}

// flowed is when something arrived last for img, or on the link that its stream shares
// with those of other images.
func (e *Engine) flowed(img *image) time.Time {
	last := time.Unix(0, img.meter.last.Load())
	e.mu.Lock()
	defer e.mu.Unlock()
	if img.main != nil {
		if t := img.main.proxy.client.Streamed(); t.After(last) {
			return t
		}
	}
	return last
}

// find returns an image with object d, its object list and d's index.
func (e *Engine) find(d toc.Digest) (*image, *pending, uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	// The one whose stream is to bring it can be made to do so soon.
	if s := e.claims[d]; s != nil && s.img != nil && s.img.pending != nil {
		if i, ok := s.img.pending.index[d]; ok {
			return s.img, s.img.pending, i
		}
	}
	for _, img := range e.images {
		if p := img.pending; p != nil {
			if i, ok := p.index[d]; ok {
				return img, p, i
			}
		}
	}
	// Objects that upper layers hide are not needed by a complete image, but by
	// containers that run on its lower layers alone.
	for _, img := range e.images {
		if img.pending == nil && img.has(d) {
			p := img.objectList()
			return img, p, p.index[d]
		}
	}
	return nil, nil, 0
}

func (i *image) has(d toc.Digest) bool {
	for _, l := range i.layers {
		for _, o := range l.objects {
			if o.Digest == d {
				return true
			}
		}
	}
	return false
}

// objectList is the object list of the wire, of which nothing is needed.
func (i *image) objectList() *pending {
	p := &pending{index: map[toc.Digest]uint32{}}
	for _, l := range i.layers {
		for _, o := range l.objects {
			if _, ok := p.index[o.Digest]; !ok {
				p.index[o.Digest] = uint32(len(p.list))
				p.list = append(p.list, o)
			}
		}
	}
	p.need = make([]bool, len(p.list))
	return p
}

// demand asks for pieces of an object of img, together with others that are wanted now. The
// channel is closed when the request has been answered, with or without the object:
// the answer may be that it is the next in the stream under way.
func (e *Engine) demand(img *image, p *pending, wanted wire.Range, again bool) <-chan struct{} {
	q := img.demands
	q.mu.Lock()
	defer q.mu.Unlock()
	if d := q.wanted[wanted]; d != nil {
		return d.answered
	}
	d := &demand{wanted, wanted, make(chan struct{}), again}
	if q.running < maxDemands {
		if e.ctx.Err() != nil {
			return d.answered // nobody will; the reader waits for the next engine
		}
		if !e.run(img, func(ctx context.Context) { e.serve(ctx, img, p) }) {
			close(d.answered) // the reader may find the object in another image
			return d.answered
		}
		q.running++
	}
	d.asked = q.widen(wanted, p.list[wanted.Object].NumPieces())
	e.asked.Store(p.list[wanted.Object].Digest, struct{}{})
	q.wanted[wanted] = d
	q.queue = append(q.queue, d)
	return d.answered
}

// serve makes requests until nothing is queued.
func (e *Engine) serve(ctx context.Context, img *image, p *pending) {
	q := img.demands
	for {
		q.mu.Lock()
		batch := q.queue[:min(len(q.queue), maxBatch)]
		if q.queue = q.queue[len(batch):]; len(batch) == 0 {
			q.running--
			q.mu.Unlock()
			return
		}
		again := false
		ranges := make([]wire.Range, len(batch))
		for i, d := range batch {
			again = again || d.again
			ranges[i] = d.asked
		}
		q.mu.Unlock()
		if err := e.ask(ctx, img, p, ranges, again); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithFields(log.Fields{"ref": e.sourceOf(img).ref, "objects": len(batch)}).Warn("objects that are waited for did not come")
		}
		q.mu.Lock()
		for _, d := range batch {
			close(d.answered)
			delete(q.wanted, d.wanted)
		}
		q.mu.Unlock()
	}
}

// ask makes one request for objects: to the stream under way, which makes them its
// next, or again, if that did not bring them, on the connection of the request.
func (e *Engine) ask(ctx context.Context, img *image, p *pending, batch []wire.Range, again bool) error {
	e.mu.Lock()
	main, src := img.main, img.source
	e.mu.Unlock()
	proxies := e.proxiesFor(src.host)
	req := wire.ObjectsRequest{Ref: src.ref, Platform: src.platform, Credentials: src.creds, Ticket: src.ticket, Objects: batch}
	err := fmt.Errorf("no proxy is configured for registry %q: %w", src.host, errdefs.ErrUnavailable)
	for _, px := range proxies {
		req.Stream = ""
		if main != nil && main.proxy == px && !again {
			req.Stream = main.id
		}
		var b *delta.Bundle
		if b, err = px.client.Objects(ctx, req); err != nil {
			continue
		}
		img.meter.turns.Add(1)
		img.meter.add(b.RequestBytes())
		err = e.store(ctx, b, img, p, nil, fromDemand)
		_ = b.Close()
		if err == nil {
			return nil
		}
	}
	return err
}
