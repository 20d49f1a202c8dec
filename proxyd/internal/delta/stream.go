package delta

import (
	"context"
	"time"

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
		var link meter
		for f := range ready {
			before := time.Now()
			if err := w.Data(f.index, f.contents, f.compressed); err != nil {
				return err
			}
			if rate := link.add(len(f.contents), time.Since(before)); rate > 0 && m.patcher != nil && !m.patcher.Patient {
				m.patcher.rate.Store(uint64(rate))
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

// meter measures what a link carries.
type meter struct {
	seen int // bytes in all
	n    int // bytes since the last rate
	took time.Duration
}

// add tells how long a write took, and returns the rate in bytes a second once in
// a while, else 0. What comes first goes into the buffers and tells nothing.
func (m *meter) add(n int, took time.Duration) float64 {
	const buffered, enough = 512 << 10, 256 << 10
	if m.seen += n; m.seen < buffered {
		return 0
	}
	m.n += n
	m.took += took
	if m.n < enough {
		return 0
	}
	rate := float64(m.n) / max(m.took.Seconds(), 1e-6)
	m.n, m.took = 0, 0
	return rate
}

func receive[T any](ctx context.Context, c <-chan T) (v T, err error) {
	select {
	case v = <-c:
		return v, nil
	case <-ctx.Done():
		return v, context.Cause(ctx)
	}
}
