package patch

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"slices"
)

const (
	minRange  = 64      // bytes of a copy that is worth an entry in the map
	maxCopies = 1 << 20 // copies that a mapper holds
)

// mapper makes the map of what moved from the copies of a pass.
type mapper struct {
	copies []copied
	least  int64 // shorter copies are left out
}

type copied struct{ old, shift, n int64 }

// add takes note of the copies of a group at offset base.
func (m *mapper) add(base int64, ops []op) {
	for _, p := range ops {
		shift := base - p.old
		n := int64(p.copy)
		if k := len(m.copies) - 1; n > 0 && k >= 0 {
			// What is as far away as the copy before goes on with it.
			if l := &m.copies[k]; l.shift == shift && p.old >= l.old+l.n {
				l.n = p.old + n - l.old
				n = 0
			}
		}
		if n >= max(minRange, m.least) {
			m.copies = append(m.copies, copied{p.old, shift, n})
		}
		base += int64(p.copy + p.lit)
	}
	if len(m.copies) > maxCopies {
		m.least = max(minRange, m.least) * 2
		m.copies = slices.DeleteFunc(m.copies, func(c copied) bool { return c.n < m.least })
	}
}

// spans returns the map: each granule belongs to the longest copy that has it. What
// was not copied goes with what stands before it. The map is no larger than a head
// can hold.
func (m *mapper) spans() []span {
	for least := max(minRange, m.least); ; least *= 2 {
		s := m.owners()
		if n := len(s); n <= maxRanges && spansSize(s) <= MaxHead-maxParts*2*64 {
			return s
		}
		m.copies = slices.DeleteFunc(m.copies, func(c copied) bool { return c.n < 2*least })
	}
}

func spansSize(s []span) (n int) {
	var b [2 * binary.MaxVarintLen64]byte
	prev := span{}
	for _, s := range s {
		n += binary.PutUvarint(b[:], uint64(s.start-prev.start)) + binary.PutVarint(b[:], s.shift-prev.shift)
		prev = s
	}
	return n
}

// owners goes through the old file with the copies at the present place in a
// heap, the longest on top.
func (m *mapper) owners() []span {
	slices.SortStableFunc(m.copies, func(a, b copied) int { return cmp.Compare(a.old, b.old) })
	var out []span
	var active byLength
	at := int64(0) // granule
	own := func(c copied) {
		if n := len(out); n > 0 && out[n-1].shift == c.shift {
			return
		}
		out = append(out, span{uint32(at), c.shift})
	}
	for i := 0; i < len(m.copies) || len(active) > 0; {
		for len(active) > 0 && active[0].last() < at {
			heap.Pop(&active)
		}
		if len(active) == 0 {
			if i == len(m.copies) {
				break
			}
			at = max(at, m.copies[i].first())
		}
		for ; i < len(m.copies) && m.copies[i].first() <= at; i++ {
			heap.Push(&active, m.copies[i])
		}
		if active[0].last() < at {
			continue
		}
		own(active[0])
		at = active[0].last() + 1
		if i < len(m.copies) {
			at = min(at, m.copies[i].first())
		}
	}
	return out
}

// first and last are the granules that a copy owns: those of which it has the
// greater part in front, any part behind.
func (c copied) first() int64 { return (c.old + granule/2) / granule }
func (c copied) last() int64  { return (c.old + c.n - 1) / granule }

type byLength []copied

func (h byLength) Len() int           { return len(h) }
func (h byLength) Less(i, j int) bool { return h[i].n > h[j].n }
func (h byLength) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byLength) Push(v any)        { *h = append(*h, v.(copied)) }
func (h *byLength) Pop() any {
	s := *h
	v := s[len(s)-1]
	*h = s[:len(s)-1]
	return v
}
