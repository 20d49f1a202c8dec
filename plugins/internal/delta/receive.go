package delta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// inFlight bounds the bytes of the frames that are read and not yet stored, as
	// they came and decoded. It must be more than twice the largest frame.
	inFlight = 18 << 20
	// batch is how many bytes of pieces are stored together.
	batch = 1 << 20
	// applyMemory is what all that apply patches keep of the old objects.
	applyMemory = 2 * patch.GoodMemory
	// maxHeads bounds the heads of patches that are under way at a time.
	maxHeads = 32 << 20
)

// Piece is a piece of an object as it is, not checked.
type Piece struct {
	Object uint32 // index into the image's object list
	Piece  int
	Bytes  []byte
}

// Sink takes what a bundle brings. Its methods are called concurrently.
type Sink interface {
	// Object describes an object of the image's list.
	Object(i uint32) (toc.Object, bool)
	// Base opens an object of a layer, numbered as in Header.Bases, that patches are
	// made against.
	Base(layer, object uint32) (Base, error)
	// Local is told what a start is expected to read of what is local. The objects
	// and pieces exist.
	Local(ranges []wire.Range)
	// Pieces checks and stores pieces of objects that exist, in any order. Their
	// bytes are valid until it returns.
	Pieces(ps []Piece) error
}

// Base is an object that a patch is made against.
type Base interface {
	io.ReaderAt
	Size() int64
}

// Receive reads the data frames of a bundle to its end and gives what they bring to
// sink. Frames are decoded on all processors, within a bound of memory; arrived,
// if not nil, is told of bytes as they come. When Receive returns, it uses sink no more.
func Receive(ctx context.Context, b *Bundle, sink Sink, arrived func(bytes int64)) error {
	g, ctx := errgroup.WithContext(ctx)
	workers := max(2, runtime.GOMAXPROCS(0))
	g.SetLimit(workers)
	r := &receiver{
		sink: sink, memory: applyMemory / int64(workers), patches: map[uint32]*revision{},
		idle: make(chan *applier, workers), room: semaphore.NewWeighted(inFlight),
	}
	err := r.read(ctx, g, b, arrived)
	// The first of the two is the cause: a reader that was told to stop has none.
	if werr := g.Wait(); werr != nil {
		return werr
	}
	return err
}

type receiver struct {
	sink   Sink
	memory int64         // of an applier
	idle   chan *applier // appliers that hold parts of their bases
	room   *semaphore.Weighted

	// By object: the patches under way. Used by read only.
	patches map[uint32]*revision
	heads   int // bytes of their heads
}

// revision is an object under way of which pieces come as segments.
type revision struct {
	object toc.Object
	entry  wire.Piece // of the base
	seen   []bool     // pieces
	left   int        // pieces not seen

	ready chan struct{} // closed when the applier can be used
	first *patch.Applier
}

// applier is one of those of a patch; each is used by one goroutine at a time.
type applier struct {
	of *revision
	*patch.Applier
}

// read reads frames in their order and starts their decoding.
func (r *receiver) read(ctx context.Context, g *errgroup.Group, b *Bundle, arrived func(int64)) error {
	b.r.Detach()
	for seen := b.WireBytes(); ; {
		f, err := b.Next()
		now := b.WireBytes()
		if arrived != nil {
			arrived(now - seen)
		}
		seen = now
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case f.Type == wire.FrameLocal:
			if err := r.local(f.Local); err != nil {
				return err
			}
			continue
		case f.Type != wire.FrameData:
			continue // the end
		}
		d := f.Data
		patches, err := r.enter(d)
		if err != nil {
			return err
		}
		weight := int64(d.Wire + d.Size())
		if err := r.room.Acquire(ctx, weight); err != nil {
			return err
		}
		g.Go(func() error {
			defer r.room.Release(weight)
			defer d.Release()
			return r.frame(ctx, d, patches)
		})
	}
}

func (r *receiver) local(ranges []wire.Range) error {
	for _, it := range ranges {
		o, ok := r.sink.Object(it.Object)
		if n := uint64(o.NumPieces()); !ok || uint64(it.First) >= n {
			return invalid("piece %d of object %d, which does not exist, is said to be local", it.First, it.Object)
		}
	}
	r.sink.Local(ranges)
	return nil
}

// enter checks the index of a frame and finds the patch to which each of its
// bases and segments belongs. Bases are known in the order of the bundle, before
// anything of them is decoded.
func (r *receiver) enter(d *wire.Data) ([]*revision, error) {
	var patches []*revision
	for i, e := range d.Index {
		o, ok := r.sink.Object(e.Object)
		if !ok {
			return nil, invalid("entry for object %d, which does not exist", e.Object)
		}
		p := r.patches[e.Object]
		switch {
		case e.Kind == wire.KindBase:
			if p != nil {
				r.heads -= p.entry.Length
			}
			if r.heads += e.Length; r.heads > maxHeads {
				return nil, invalid("patches under way have heads of more than %d bytes", maxHeads)
			}
			p = &revision{object: o, entry: e, seen: make([]bool, o.NumPieces()), left: o.NumPieces(), ready: make(chan struct{})}
			r.patches[e.Object] = p
		case int64(e.Piece) >= int64(o.NumPieces()):
			return nil, invalid("piece %d of object %s of %d bytes", e.Piece, o.Digest, o.Size)
		case e.Kind == wire.KindSegment && p == nil:
			return nil, invalid("segment of object %s without a base", o.Digest)
		case e.Kind != wire.KindSegment && e.Length != o.PieceLen(int(e.Piece)):
			return nil, invalid("piece %d of object %s has %d bytes, want %d", e.Piece, o.Digest, e.Length, o.PieceLen(int(e.Piece)))
		}
		if p == nil {
			continue
		}
		if patches == nil {
			patches = make([]*revision, len(d.Index))
		}
		patches[i] = p
		if e.Kind != wire.KindBase && !p.seen[e.Piece] {
			p.seen[e.Piece] = true
			if p.left--; p.left == 0 {
				delete(r.patches, e.Object)
				r.heads -= p.entry.Length
			}
		}
	}
	return patches, nil
}

// frame decodes a frame and stores what it brings.
func (r *receiver) frame(ctx context.Context, d *wire.Data, patches []*revision) error {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	contents, err := d.Decode(buf.plain)
	if err != nil {
		return err
	}
	buf.plain = contents
	var ps []Piece
	made := buf.made[:0] // pieces made of segments
	for i, e := range d.Index {
		b := contents[:e.Length]
		contents = contents[e.Length:]
		switch e.Kind {
		case wire.KindBase:
			if err := r.open(patches[i], b); err != nil {
				return err
			}
			continue
		case wire.KindSegment:
			p := patches[i]
			if n := p.object.PieceLen(int(e.Piece)); len(made)+n > cap(made) {
				if err := r.store(ps); err != nil {
					return err
				}
				ps, made = ps[:0], made[:0]
				if cap(made) < batch {
					made = make([]byte, 0, batch)
					buf.made = made
				}
			}
			at := len(made)
			if made, err = r.apply(ctx, made, p, int(e.Piece), b); err != nil {
				return fmt.Errorf("patch of object %s: %w", p.object.Digest, err)
			}
			b = made[at:]
		case wire.KindX86, wire.KindARM64:
			o, _ := r.sink.Object(e.Object)
			wire.Unfilter(e.Kind, b, e.Piece, o.Size)
		}
		ps = append(ps, Piece{Object: e.Object, Piece: int(e.Piece), Bytes: b})
	}
	return r.store(ps)
}

func (r *receiver) store(ps []Piece) error {
	if len(ps) == 0 {
		return nil
	}
	return r.sink.Pieces(ps)
}

// open makes a patch usable, now that its head is there.
func (r *receiver) open(p *revision, head []byte) error {
	base, err := r.sink.Base(p.entry.Layer, p.entry.Base)
	if err != nil {
		return fmt.Errorf("base of object %s: %w", p.object.Digest, err)
	}
	if p.first, err = patch.NewApplier(base, base.Size(), p.object.Size, head, r.memory); err != nil {
		return fmt.Errorf("patch of object %s: %w", p.object.Digest, malformed(err))
	}
	close(p.ready)
	return nil
}

// apply appends the piece that a segment makes.
func (r *receiver) apply(ctx context.Context, dst []byte, p *revision, piece int, segment []byte) ([]byte, error) {
	select {
	case <-p.ready:
	case <-ctx.Done(): // the frame of the base could not be decoded
		return nil, context.Cause(ctx)
	}
	a := r.acquire(p)
	out, err := a.Apply(dst, piece, segment)
	if err != nil {
		return nil, malformed(err)
	}
	select {
	case r.idle <- a:
	default:
	}
	return out, nil
}

// acquire takes an idle applier of p, or makes one.
func (r *receiver) acquire(p *revision) *applier {
	for range cap(r.idle) {
		select {
		case a := <-r.idle:
			if a.of == p {
				return a
			}
		default:
		}
	}
	return &applier{p, p.first.Fork()}
}

// malformed makes errors about patches errors about the bundle.
func malformed(err error) error {
	if errors.Is(err, patch.ErrInvalid) {
		return fmt.Errorf("%w: %w", err, toc.ErrInvalid)
	}
	return err
}

type buffer struct{ plain, made []byte }

var buffers = sync.Pool{New: func() any { return new(buffer) }}
