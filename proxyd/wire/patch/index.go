package patch

import (
	"context"
	"encoding/binary"
	"math/bits"
)

const anchor = 16 // bytes that are hashed

// index finds where 16 bytes stand in a file, at the multiples of step. Of places
// with the same hash it knows the first. An entry holds, from the low bits up, the place
// divided by step plus 1, and some bits of the hash, which spare most
// looks at places that are none.
type index struct {
	table []uint32
	step  int64
	shift uint  // of the hash, for the slot
	place uint  // bits of an entry that say the place
	next  int64 // offset from which on nothing is found
}

// newIndex returns an index for files of size bytes, in which nothing is found yet. It
// takes about memory bytes at most and widens the step as needed.
func newIndex(size, step, memory int64) *index {
	slots := bits.Len64(uint64(max(memory/4, 1<<8))) - 1
	step = max(step, (size+1<<slots-1)>>slots)
	n := uint64(size/step + 1)
	slots = min(slots, max(bits.Len64(n), 8))
	return &index{table: make([]uint32, 1<<slots), step: step, shift: uint(64 - slots), place: uint(bits.Len64(n))}
}

// grow reads w up to offset to, and to the end of the block there, unless it did.
func (x *index) grow(ctx context.Context, w *window, to int64) error {
	for to = min(to, w.size); x.next < to; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := w.from(x.next)
		if w.err != nil {
			return w.err
		}
		o, end := x.next, x.next+int64(len(b))
		p := (o + x.step - 1) / x.step * x.step
		for ; p+anchor <= end; p += x.step {
			h, plain := hash(b[p-o:])
			if plain {
				continue // a run: it would be found everywhere
			}
			if e := &x.table[h>>x.shift]; *e == 0 {
				*e = x.tag(h) | uint32(p/x.step+1)
			}
		}
		x.next = end
	}
	return nil
}

// tag returns the bits of a hash that stand in an entry.
func (x *index) tag(h uint64) uint32 { return uint32(h) >> x.place << x.place }

// find returns where the first bytes of b may stand, or -1.
func (x *index) find(b []byte) int64 {
	h, plain := hash(b)
	if plain {
		return -1
	}
	e := x.table[h>>x.shift]
	at := e & (1<<x.place - 1)
	if at == 0 || e-at != x.tag(h) {
		return -1
	}
	return int64(at-1) * x.step
}

func hash(b []byte) (h uint64, plain bool) {
	u, v := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	h = (u*0x9E3779B97F4A7C15 ^ bits.RotateLeft64(v, 29)) * 0xD6E8FEB86659FD93
	return h, u == v
}
