package delta

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// ahead is the number of frames that exist at once: one is written, one is made.
// It bounds the memory of a stream, and what urgent objects have to wait for.
const ahead = 2

// Steer is how others change a stream under way.
type Steer struct {
	// Skip, if not nil, leaves out the pieces for which it returns true. It is asked
	// once for each piece, in the order of the plan, right before it is read.
	Skip func(object uint32, piece int) bool
	// Urgent, if not nil, returns what a reader waits for now. They are
	// sent before anything else; their caller has claimed them. It is asked before
	// each frame, and once more, with last set, when the plan is done: then
	// nothing may become urgent any more.
	Urgent func(last bool) []Item
}

// Stream writes the data frames of a plan to w, and no end frame. If it is not
// steered, the frames depend on nothing but the plan and the packs.
//
// Stream reads and compresses the next frames while it writes one. It returns
// when all are written, at the first error, or when ctx ends and the write under way
// returns; nothing of it runs on after that.
func Stream(ctx context.Context, w *wire.Writer, img *Image, p *Plan, packs Packs, steer Steer) error {
	g, ctx := errgroup.WithContext(ctx)
	ready := make(chan *frame)
	spare := make(chan *frame, ahead)
	for range ahead {
		spare <- new(frame)
	}
	m := newMaker(img, packs)
	m.urgent = steer.Urgent
	m.free = func(ctx context.Context) (*frame, error) { return receive(ctx, spare) }
	m.emit = func(ctx context.Context, f *frame) error {
		select {
		case ready <- f:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	g.Go(func() error {
		defer close(ready)
		for _, it := range p.Items {
			for i := range it.Pieces {
				if err := m.hurry(ctx, false); err != nil {
					return err
				}
				piece := int(it.First + i)
				if steer.Skip != nil && steer.Skip(it.Object, piece) {
					continue
				}
				if err := m.add(ctx, it.Object, piece); err != nil {
					return err
				}
			}
		}
		if err := m.flush(ctx); err != nil {
			return err
		}
		return m.hurry(ctx, true)
	})
	g.Go(func() error {
		for f := range ready {
			if err := w.Data(f.index, f.contents, f.compressed); err != nil {
				return err
			}
			spare <- f // has room for all frames
		}
		return nil
	})
	return g.Wait()
}

func receive(ctx context.Context, spare <-chan *frame) (*frame, error) {
	select {
	case f := <-spare:
		return f, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
