package delta

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

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

// Compress appends src as one zstd frame to dst.
type Compress func(ctx context.Context, dst, src []byte) ([]byte, error)

// WriteFrames writes the frames of a plan, which compress makes, to w.
func WriteFrames(ctx context.Context, w io.Writer, img *Image, p *Plan, packs Packs, compress Compress) error {
	if _, err := io.WriteString(w, framesMagic); err != nil {
		return err
	}
	c := &compactor{img: img, packs: packs, w: w, compress: compress, machine: map[uint32]wire.Kind{}, target: firstSolid}
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
	if err := c.flush(ctx); err != nil {
		return err
	}
	index := append(binary.AppendUvarint(nil, uint64(c.frames)), c.index...)
	sum := sha256.Sum256(index)
	n := len(index)
	index = binary.LittleEndian.AppendUint64(index, uint64(n))
	_, err := w.Write(append(index, sum[:]...))
	return err
}

type compactor struct {
	img      *Image
	packs    Packs
	w        io.Writer
	compress Compress
	machine  map[uint32]wire.Kind // of the objects that come in pieces
	target   int

	entries []wire.Piece // of the frame under way
	plain   []byte
	z       []byte
	index   []byte
	frames  int
}

// add puts a piece into the frame under way and returns its length.
func (c *compactor) add(ctx context.Context, object uint32, piece int, hot bool) (int, error) {
	o := &c.img.Objects[object]
	n := o.PieceLen(piece)
	alone := hot && o.Size >= SmallObject
	if alone || len(c.plain)+n > max(c.target, n) || len(c.entries) == wire.MaxCount {
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
	before := len(c.plain)
	if c.plain, err = pack.AppendPiece(c.plain, at.Object, piece); err != nil {
		return 0, fmt.Errorf("object %s: %w", o.Digest, err)
	}
	if len(c.plain)-before != n {
		return 0, fmt.Errorf("object %s has %d bytes in its pack, want %d: %w", o.Digest, len(c.plain)-before, n, toc.ErrInvalid)
	}
	if piece == 0 {
		kind = machine(c.plain[before:])
		if o.NumPieces() > 1 {
			c.machine[object] = kind
		}
	}
	wire.Filter(kind, c.plain[before:], uint32(piece), o.Size)
	c.entries = append(c.entries, wire.Piece{Kind: kind, Object: object, Piece: uint32(piece), Length: n})
	if alone || len(c.plain) >= c.target {
		return n, c.flush(ctx)
	}
	return n, nil
}

// flush writes the frame under way.
func (c *compactor) flush(ctx context.Context) error {
	if len(c.entries) == 0 {
		return nil
	}
	var err error
	if c.z, err = c.compress(ctx, c.z[:0], c.plain); err != nil {
		return err
	}
	out, compressed := c.z, uint64(1)
	if len(out) >= len(c.plain) {
		out, compressed = c.plain, 0
	}
	if _, err := c.w.Write(out); err != nil {
		return err
	}
	c.index = binary.AppendUvarint(c.index, uint64(len(out))<<1|compressed)
	c.index = binary.AppendUvarint(c.index, uint64(len(c.entries)))
	for _, e := range c.entries {
		c.index = append(c.index, byte(e.Kind))
		c.index = binary.AppendUvarint(c.index, uint64(e.Object))
		c.index = binary.AppendUvarint(c.index, uint64(e.Piece))
	}
	c.frames++
	c.entries, c.plain = c.entries[:0], c.plain[:0]
	c.target = min(2*c.target, solid)
	return nil
}
