package patch

import (
	"context"
	"fmt"
	"io"
)

// Method says how a patch is made.
type Method uint8

// The methods. RD falls back to HD for files that it is not for.
const (
	Auto Method = iota // RD for programs of at most AutoRD bytes
	HD
	RD
)

// AutoRD is the size up to which Auto spends the time for RD.
const AutoRD = 32 << 20

// Options say how much to spend on a patch. The zero Options make one at
// once, while somebody waits.
type Options struct {
	Method Method
	// Lazy is how many of 32 bytes must be equal to go on without looking for better;
	// 0 is 20, and 24 for RD; negative is off: slower, smaller.
	Lazy int
	// Step is the distance of the places in the old file that are found; 0 is 8.
	Step int
	// Ahead is how far behind its own place in the old file something is looked for, in
	// bytes; 0 is all of the file, which is read before the first segment is made.
	Ahead int64
	// Skip, if not nil, tells of which pieces no segment is needed. It is asked right before
	// they would be made, and is of use if it leaves out several in a row.
	Skip func(piece int) bool
	// Passes of RD: the map gets better with each; 0 is 2.
	Passes int
	// Memory bounds what is held of the old file and of its index, in bytes; 0 is 192
	// MiB. Of files that are larger, less is found.
	Memory int64
}

func (o *Options) fill() {
	if o.Step <= 0 {
		o.Step = 8
	}
	o.Passes = max(o.Passes, 2)
	if o.Memory <= 0 {
		o.Memory = 192 << 20
	}
}

// Encode makes a patch from old to new. It calls emit with the head, if there is
// one, as piece Head, and then with the segments of all pieces in order. emit must not
// keep the slice.
func Encode(ctx context.Context, old, nw io.ReaderAt, oldSize, newSize int64, o Options,
	emit func(piece int, segment []byte) error) error {
	if oldSize < 0 || oldSize > MaxSize || newSize < 0 || newSize > MaxSize {
		return fmt.Errorf("objects of %d and %d bytes are not patched", oldSize, newSize)
	}
	o.fill()
	e := &encoder{old: old, nw: nw, oldSize: oldSize, newSize: newSize, options: o}
	reloc, err := e.relocation(ctx)
	if err != nil {
		return err
	}
	if reloc != nil {
		if err := emit(Head, reloc.encode()); err != nil {
			return err
		}
	}
	var s builder
	var ops []op
	return e.run(ctx, reloc, o.Skip, func(d *differ) error {
		base, b, left := d.base, d.nw, d.ops
		for len(b) > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(PieceSize, len(b))
			ops, left = take(ops[:0], left, n)
			if o.Skip != nil && o.Skip(int(base/PieceSize)) {
				base, b = base+int64(n), b[n:]
				continue
			}
			segment := s.segment(d.old, base, b[:n], ops)
			if d.old.err != nil {
				return d.old.err
			}
			if err := emit(int(base/PieceSize), segment); err != nil {
				return err
			}
			base, b = base+int64(n), b[n:]
		}
		return nil
	})
}

// skips tells whether all pieces of n bytes from offset base on are left out.
func skips(skip func(piece int) bool, base int64, n int) bool {
	for i := base / PieceSize; i*PieceSize < base+int64(n); i++ {
		if !skip(int(i)) {
			return false
		}
	}
	return true
}

// take appends to first the ops that make the next n bytes, and returns those that are
// left. It cuts an op that makes bytes of both in two.
func take(first, ops []op, n int) (_, left []op) {
	for n > 0 {
		o := &ops[0]
		c := op{old: o.old, copy: min(o.copy, n)}
		c.lit = min(o.lit, n-c.copy)
		n -= c.copy + c.lit
		first = append(first, c)
		o.old, o.copy, o.lit = o.old+int64(c.copy), o.copy-c.copy, o.lit-c.lit
		if o.copy+o.lit == 0 {
			ops = ops[1:]
		}
	}
	return first, ops
}

type encoder struct {
	old, nw          io.ReaderAt
	oldSize, newSize int64
	options          Options
	relocates        bool
}

// run makes the ops of each group, in order, but not of those that are left out.
func (e *encoder) run(ctx context.Context, reloc *relocator, skip func(piece int) bool, each func(d *differ) error) error {
	const blockBits = 20
	forIndex := min(e.options.Memory/4, 64<<20)
	lazy := e.options.Lazy
	switch {
	case lazy != 0:
	case e.relocates:
		lazy = 24
	default:
		lazy = 20
	}
	d := &differ{lazy: lazy, old: newWindow(e.old, e.oldSize, blockBits, e.options.Memory-forIndex, reloc)}
	d.index = newIndex(e.oldSize, int64(e.options.Step), forIndex)
	buf := make([]byte, min(groupSize, e.newSize))
	for base := int64(0); base < e.newSize; base += groupSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(groupSize, e.newSize-base)]
		if skip != nil && skips(skip, base, len(b)) {
			continue
		}
		if err := readFull(e.nw, b, base); err != nil {
			return err
		}
		to := e.oldSize
		if e.options.Ahead > 0 {
			to = base + groupSize + max(0, e.oldSize-e.newSize) + e.options.Ahead
		}
		if err := d.index.grow(ctx, d.old, to); err != nil {
			return err
		}
		if err := d.group(base, b); err != nil {
			return err
		}
		if err := each(d); err != nil {
			return err
		}
	}
	return nil
}

// relocation finds out what moved where, nil if the method is HD.
func (e *encoder) relocation(ctx context.Context) (*relocator, error) {
	m := e.options.Method
	if m == HD || m == Auto && e.newSize > AutoRD {
		return nil, nil
	}
	o, err := readProgram(e.old, e.oldSize)
	if err != nil || o == nil {
		return nil, err
	}
	n, err := readProgram(e.nw, e.newSize)
	if err != nil || n == nil || n.machine != o.machine {
		return nil, err
	}
	e.relocates = true
	var reloc *relocator
	for range e.options.Passes - 1 {
		m := &mapper{}
		err := e.run(ctx, reloc, nil, func(d *differ) error {
			m.add(d.base, d.ops)
			return nil
		})
		if err != nil {
			return nil, err
		}
		reloc = &relocator{machine: o.machine, olds: o.parts, news: n.parts, eh: o.eh, ehSize: o.ehSize, spans: m.spans()}
		if !o.golang { // Go has neither, and much that looks like it
			reloc.flags = flagJcc | flagTables
		}
		reloc.index(e.oldSize)
	}
	return reloc, nil
}
