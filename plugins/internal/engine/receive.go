package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/plugins/internal/delta"
	"github.com/starlight-delta/starlight/plugins/internal/objects"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// kinds of entries that we take: all.
const kinds = wire.PatchKinds | wire.FilterKinds

// store writes the objects of a bundle of img.
func (e *Engine) store(ctx context.Context, b *delta.Bundle, img *image, p *pending, bases [][]toc.Object, from origin) error {
	r := &receipt{e: e, img: img, p: p, bases: bases, from: from, open: map[uint32]*objects.Writer{}}
	received := e.metrics.received.WithLabelValues(string(from))
	err := delta.Receive(ctx, b, r, func(n int64) {
		img.meter.add(n)
		received.Add(float64(n))
	})
	err = errors.Join(err, r.close())
	e.metrics.refused(from, err)
	return err
}

// receipt is what a bundle brings, on its way into the store.
type receipt struct {
	e     *Engine
	img   *image
	p     *pending
	bases [][]toc.Object
	from  origin

	mu   sync.Mutex
	open map[uint32]*objects.Writer // guarded by mu: of large objects
	last toc.Digest                 // guarded by mu: the large object that is coming
}

var _ delta.Sink = (*receipt)(nil)

// close gives up what did not become whole.
func (r *receipt) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for i, w := range r.open {
		r.e.streaming.Delete(r.p.list[i].Digest)
		errs = append(errs, w.Close())
	}
	return errors.Join(errs...)
}

// Object implements delta.Sink.
func (r *receipt) Object(i uint32) (toc.Object, bool) {
	if int64(i) >= int64(len(r.p.list)) {
		return toc.Object{}, false
	}
	return r.p.list[i], true
}

// Local implements delta.Sink.
func (r *receipt) Local(ranges []wire.Range) {
	r.e.run(r.img, func(ctx context.Context) { r.e.preload(ctx, r.img, r.p.list, ranges) })
}

// Base implements delta.Sink.
func (r *receipt) Base(layer, object uint32) (delta.Base, error) {
	if int64(layer) >= int64(len(r.bases)) || int64(object) >= int64(len(r.bases[layer])) {
		return nil, fmt.Errorf("object %d of base layer %d does not exist: %w", object, layer, toc.ErrInvalid)
	}
	return r.e.objects.Base(r.bases[layer][object])
}

// writers is how many goroutines write the small objects of a frame: most of the
// time goes into making files.
const writers = 4

// Pieces implements delta.Sink.
func (r *receipt) Pieces(ps []delta.Piece) error {
	var small []delta.Piece
	var done []toc.Digest
	for _, p := range ps {
		o := r.p.list[p.Object]
		if o.Size <= toc.PieceSize {
			r.turn(toc.Digest{})
			small = append(small, p)
			continue
		}
		r.turn(o.Digest)
		whole, err := r.piece(o, p)
		if err != nil {
			return err
		}
		if whole {
			done = append(done, o.Digest)
		}
	}
	var g errgroup.Group
	for i := range min(writers, len(small)) {
		g.Go(func() error {
			for j := i; j < len(small); j += writers {
				if err := r.e.objects.Put(r.p.list[small[j].Object], small[j].Bytes); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	for _, p := range small {
		if d := r.p.list[p.Object].Digest; err == nil || r.e.objects.Has(d) {
			done = append(done, d)
		}
	}
	r.e.arrived(r.from, done...)
	return err
}

// turn notes that another object comes now: of the one before, pieces that a reader
// waits for may be far back.
func (r *receipt) turn(d toc.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last != d && !r.last.IsZero() {
		r.e.streaming.Delete(r.last)
	}
	r.last = d
}

// piece stores a piece of a large object and tells whether that is whole now.
func (r *receipt) piece(o toc.Object, p delta.Piece) (bool, error) {
	r.mu.Lock()
	w := r.open[p.Object]
	if w == nil {
		if r.e.objects.Has(o.Digest) {
			r.mu.Unlock()
			return true, nil
		}
		var err error
		if w, err = r.e.objects.Writer(o); err != nil {
			r.mu.Unlock()
			return false, err
		}
		r.open[p.Object] = w
	}
	r.mu.Unlock()
	r.e.streaming.Store(o.Digest, uint32(p.Piece))
	if err := w.Piece(p.Piece, p.Bytes); err != nil {
		return false, err
	}
	if !w.Complete() {
		return false, nil
	}
	r.e.streaming.Delete(o.Digest)
	return true, nil
}

// holdBases resolves the layers that the patches of a stream are made against,
// and protects their objects from Sweep until the stream has ended. The gate is
// held since the inventory was made.
func (e *Engine) holdBases(s *stream, diffIDs []toc.Digest) error {
	if len(diffIDs) == 0 {
		return nil
	}
	var ds []toc.Digest
	s.bases = nil
	e.mu.Lock()
	for _, d := range diffIDs {
		l := e.layers[d]
		if l == nil {
			e.mu.Unlock()
			return fmt.Errorf("base layer %s, which we did not say to have: %w", d, toc.ErrInvalid)
		}
		s.bases = append(s.bases, l.objects)
		for i := range l.objects {
			ds = append(ds, l.objects[i].Digest)
		}
	}
	e.mu.Unlock()
	s.unbase = e.objects.Pin(ds)
	return nil
}
