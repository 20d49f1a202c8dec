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
	shift uint // of the hash, for the slot
	place uint // bits of an entry that say the place
}

// newIndex reads all of w. It takes about memory bytes at most and widens the step as
// needed.
func newIndex(ctx context.Context, w *window, step, memory int64) (*index, error) {
	slots := bits.Len64(uint64(max(memory/4, 1<<8))) - 1
	step = max(step, (w.size+1<<slots-1)>>slots)
	n := uint64(w.size/step + 1)
	slots = min(slots, max(bits.Len64(n), 8))
	x := &index{table: make([]uint32, 1<<slots), step: step, shift: uint(64 - slots), place: uint(bits.Len64(n))}
	for o := int64(0); o < w.size; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := w.from(o)
		if w.err != nil {
			return nil, w.err
		}
		end := o + int64(len(b))
		p := (o + step - 1) / step * step
		for ; p+anchor <= end; p += step {
			h, plain := hash(b[p-o:])
			if plain {
				continue // a run: it would be found everywhere
			}
			if e := &x.table[h>>x.shift]; *e == 0 {
				*e = x.tag(h) | uint32(p/step+1)
			}
		}
		o = end
	}
	return x, nil
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
