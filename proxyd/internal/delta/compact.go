package delta

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// coolFrame is the size of the frames behind what is hot, cold that of those
	// from coldFrom bytes behind it on. Urgent objects wait for the frame that is
	// being sent; the farther back in a plan, the rarer is it that anything is urgent.
	coolFrame = 1 << 20
	coldFrame = wire.MaxData
	coldFrom  = 8 << 20
)

// Compress appends src as one zstd frame to dst. It is called concurrently.
type Compress func(ctx context.Context, dst, src []byte) ([]byte, error)

// WriteFrames writes the frames of a plan to w, at low priority. So many at a time are
// compressed, each with two buffers of up to coldFrame bytes.
func WriteFrames(ctx context.Context, w io.Writer, img *Image, p *Plan, packs Packs, compress Compress, parallel int) error {
	if _, err := io.WriteString(w, framesMagic); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	c := &compactor{
		img: img, packs: packs, machine: map[uint32]wire.Kind{}, target: firstSolid,
		next: new(strongFrame), spare: make(chan *strongFrame, parallel),
		plain: make(chan *strongFrame, parallel), made: make(chan *strongFrame, parallel),
	}
	for range parallel {
		c.spare <- new(strongFrame)
		g.Go(background.Guard(func() error {
			_ = background.Lower()
			return c.compress(ctx, compress)
		}))
	}
	var index []byte
	g.Go(func() (err error) {
		index, err = c.write(ctx, w)
		return err
	})
	g.Go(background.Guard(func() error {
		_ = background.Lower()
		defer close(c.made)
		defer close(c.plain)
		return c.all(ctx, p)
	}))
	if err := g.Wait(); err != nil {
		return err
	}
	sum := sha256.Sum256(index)
	n := len(index)
	index = binary.LittleEndian.AppendUint64(index, uint64(n))
	_, err := w.Write(append(index, sum[:]...))
	return err
}

// compactor makes frames. Its goroutines have a frame in turn: all puts it together, one
// of several that compress does that, write writes it and gives it back.
type compactor struct {
	img     *Image
	packs   Packs
	machine map[uint32]wire.Kind // of the objects that come in pieces
	target  int

	// Each channel has room for all frames.
	next  *strongFrame // under way
	spare chan *strongFrame
	plain chan *strongFrame // to be compressed
	made  chan *strongFrame // in the order of the file
}

// strongFrame is a frame of the file.
type strongFrame struct {
	entries  []wire.Piece
	plain, z []byte
	done     chan struct{} // z is there
}

// all puts the frames of a plan together.
func (c *compactor) all(ctx context.Context, p *Plan) error {
	var cool int64
	for i, it := range p.Items {
		if i == p.Hot {
			if err := c.flush(ctx); err != nil {
				return err
			}
		}
		for n := range it.Pieces {
			switch {
			case i < p.Hot:
			case cool < coldFrom:
				c.target = coolFrame
			default:
				c.target = coldFrame
			}
			n, err := c.add(ctx, it.Object, int(it.First+n), i < p.Hot)
			if err != nil {
				return err
			}
			if i >= p.Hot {
				cool += int64(n)
			}
		}
	}
	return c.flush(ctx)
}

// add puts a piece into the frame under way and returns its length.
func (c *compactor) add(ctx context.Context, object uint32, piece int, hot bool) (int, error) {
	o := &c.img.Objects[object]
	n := o.PieceLen(piece)
	alone := hot && o.Size >= SmallObject
	if alone || len(c.next.plain)+n > max(c.target, n) || len(c.next.entries) == wire.MaxCount {
		if err := c.flush(ctx); err != nil {
			return 0, err
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	at := c.img.places[object]
	pack, err := c.packs(ctx, at.Layer)
	if err != nil {
		return 0, fmt.Errorf("pack of layer %d: %w", at.Layer, err)
	}
	kind, ok := c.machine[object]
	if !ok && piece > 0 {
		first, err := pack.AppendPiece(nil, at.Object, 0)
		if err != nil {
			return 0, err
		}
		kind = machine(first)
		c.machine[object] = kind
	}
	before := len(c.next.plain)
	if c.next.plain, err = pack.AppendPiece(c.next.plain, at.Object, piece); err != nil {
		return 0, fmt.Errorf("object %s: %w", o.Digest, err)
	}
	if len(c.next.plain)-before != n {
		return 0, fmt.Errorf("object %s has %d bytes in its pack, want %d: %w", o.Digest, len(c.next.plain)-before, n, toc.ErrInvalid)
	}
	if piece == 0 {
		kind = machine(c.next.plain[before:])
		if o.NumPieces() > 1 {
			c.machine[object] = kind
		}
	}
	wire.Filter(kind, c.next.plain[before:], uint32(piece), o.Size)
	c.next.entries = append(c.next.entries, wire.Piece{Kind: kind, Object: object, Piece: uint32(piece), Length: n})
	if alone || len(c.next.plain) >= c.target {
		return n, c.flush(ctx)
	}
	return n, nil
}

// flush has the frame under way compressed, and begins another.
func (c *compactor) flush(ctx context.Context) error {
	f := c.next
	if len(f.entries) == 0 {
		return nil
	}
	next, err := receive(ctx, c.spare)
	if err != nil {
		return err
	}
	f.done = make(chan struct{})
	c.plain <- f
	c.made <- f
	next.entries, next.plain = next.entries[:0], next.plain[:0]
	c.next = next
	c.target = min(2*c.target, solid)
	return nil
}

// compress compresses what is put together.
func (c *compactor) compress(ctx context.Context, compress Compress) error {
	for f := range c.plain {
		var err error
		if f.z, err = compress(ctx, f.z[:0], f.plain); err != nil {
			return err
		}
		close(f.done)
	}
	return nil
}

// write writes what is compressed, and returns the index.
func (c *compactor) write(ctx context.Context, w io.Writer) (index []byte, err error) {
	frames := 0
	for f := range c.made {
		if _, err := receive(ctx, f.done); err != nil {
			return nil, err
		}
		out, compressed := f.z, uint64(1)
		if len(out) >= len(f.plain) {
			out, compressed = f.plain, 0
		}
		if _, err := w.Write(out); err != nil {
			return nil, err
		}
		index = binary.AppendUvarint(index, uint64(len(out))<<1|compressed)
		index = binary.AppendUvarint(index, uint64(len(f.entries)))
		for _, e := range f.entries {
			index = append(index, byte(e.Kind))
			index = binary.AppendUvarint(index, uint64(e.Object))
			index = binary.AppendUvarint(index, uint64(e.Piece))
		}
		frames++
		c.spare <- f
	}
	return append(binary.AppendUvarint(nil, uint64(frames)), index...), nil
}
