package delta

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
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
	// Patcher, if not nil, makes patches for this stream.
	Patcher *Patcher
	// Frames, if not nil, are frames that were made before, of a worker that takes
	// filtered pieces. They may bring some pieces that are not in the plan.
	Frames *FrameSource
	// Pause, if not nil, is asked before each piece, of so many bytes, of an item of the
	// plan. If it returns a function, what is ready goes out, and the stream waits
	// until the function returns: others to the same worker are more urgent.
	Pause func(item, size int) (wait func(context.Context))
}

// Stream writes the data frames of a plan to w, and no end frame. If it is not
// steered, the frames depend on nothing but the plan and the packs. Which pieces come
// as patches depends on how fast these are made, too: a link that waits is given
// what is stored.
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
	m.patcher, m.frames = steer.Patcher, steer.Frames
	patching, stop := context.WithCancel(ctx)
	defer stop()
	if m.patcher != nil {
		m.patcher.start(patching, g, img, p, packs)
	}
	g.Go(background.Guard(func() error {
		defer close(ready)
		defer stop() // patches that nobody waits for any more
		return m.all(ctx, p, steer)
	}))
	g.Go(func() error {
		for f := range ready {
			if m.patcher != nil && m.patcher.Link != nil {
				if rate := m.patcher.Link(); rate > 0 {
					m.patcher.rate.Store(uint64(rate))
				}
			}
			if err := w.Data(f.index, f.contents, f.compressed); err != nil {
				return err
			}
			spare <- f // has room for all frames
		}
		return nil
	})
	return g.Wait()
}

// all emits a plan.
func (m *maker) all(ctx context.Context, p *Plan, steer Steer) error {
	for n, it := range p.Items {
		m.hot = n < p.Hot
		for i := range it.Pieces {
			piece := int(it.First + i)
			if steer.Pause != nil {
				if wait := steer.Pause(n, m.img.Objects[it.Object].PieceLen(piece)); wait != nil {
					if err := m.flush(ctx); err != nil {
						return err
					}
					wait(ctx)
				}
			}
			if err := m.hurry(ctx, false); err != nil {
				return err
			}
			if m.patcher != nil {
				m.patcher.advance(m.img.Objects[it.Object].PieceLen(piece))
			}
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
}

func receive[T any](ctx context.Context, c <-chan T) (v T, err error) {
	select {
	case v = <-c:
		return v, nil
	case <-ctx.Done():
		return v, context.Cause(ctx)
	}
}
