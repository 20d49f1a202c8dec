package trace

import (
	"cmp"
	"slices"
)

// Order is what the traces of an image say.
type Order struct {
	// Items, the most urgent first.
	Items []Item
	// Hot is how many of Items most starts read; the others only some of them.
	Hot int
	// Full is how many of the traces saw all that was read. If it is 0, starts read
	// more than Items.
	Full int
}

// unseen is the rank of what a trace did not see.
const unseen = int(^uint(0) >> 1)

// partialShare of the partial traces must have seen what counts as hot because
// of them: each sees only what was late in its time.
const partialShare = 8

// Aggregate makes one order of many traces. pieces tells how many pieces each
// object of the image has; what a trace says of others is left out.
//
// What at least half of the full traces read comes by its median rank, then what
// partial traces waited for, then what few read, the more often the earlier.
func Aggregate(traces []*Trace, pieces []uint32) Order {
	var full, partial []*Trace
	for _, t := range traces {
		if t.Partial {
			partial = append(partial, t)
		} else {
			full = append(full, t)
		}
	}
	o := Order{Full: len(full)}
	var rare []ranked
	for _, s := range rank(full, pieces) {
		if s.median != unseen {
			o.Items = append(o.Items, s.Item)
		} else {
			rare = append(rare, s)
		}
	}
	for _, s := range rank(partial, pieces) {
		if s.seen*partialShare >= len(partial) {
			o.Items = append(o.Items, s.Item)
		} else {
			rare = append(rare, s)
		}
	}
	o.Hot = len(o.Items)
	slices.SortStableFunc(rare, func(a, b ranked) int { return cmp.Or(b.seen-a.seen, cmp.Compare(a.mean, b.mean)) })
	for _, s := range rare {
		o.Items = append(o.Items, s.Item)
	}
	return o.joined()
}

// joined puts neighbouring pieces that follow each other into one item.
func (o Order) joined() Order {
	out := Order{Items: make([]Item, 0, len(o.Items)), Full: o.Full}
	for i, it := range o.Items {
		if n := len(out.Items); n > 0 && i != o.Hot {
			if last := &out.Items[n-1]; last.Object == it.Object && last.First+last.Pieces == it.First {
				last.Pieces += it.Pieces
				continue
			}
		}
		out.Items = append(out.Items, it)
		if i < o.Hot {
			out.Hot = len(out.Items)
		}
	}
	if o.Hot > 0 {
		out.Hot = max(out.Hot, 1)
	}
	return out
}

// ranked is a run of pieces that all traces treat alike.
type ranked struct {
	Item
	seen   int // traces
	median int // rank, unseen in more than half of them: unseen
	mean   float64
}

// rank cuts the objects where traces differ, and ranks the parts by median, then
// by mean rank.
func rank(traces []*Trace, pieces []uint32) []ranked {
	type mention struct {
		trace, rank int
		first, end  uint32
	}
	by := map[uint32][]mention{}
	for ti, t := range traces {
		count := map[uint32]int{}
		for r, it := range t.Items {
			if int64(it.Object) >= int64(len(pieces)) || it.First >= pieces[it.Object] || count[it.Object] == maxRuns {
				continue
			}
			count[it.Object]++
			end := pieces[it.Object]
			if it.Pieces > 0 && it.Pieces < end-it.First {
				end = it.First + it.Pieces
			}
			by[it.Object] = append(by[it.Object], mention{ti, r, it.First, end})
		}
	}
	ranks := make([]int, len(traces))
	var out []ranked
	for object, mentions := range by {
		cuts := make([]uint32, 0, 2*len(mentions))
		for _, m := range mentions {
			cuts = append(cuts, m.first, m.end)
		}
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		if len(cuts) > maxCuts { // nobody reads like that: all of it, then
			cuts = []uint32{cuts[0], cuts[len(cuts)-1]}
		}
		for i := range len(cuts) - 1 {
			for j := range ranks {
				ranks[j] = unseen
			}
			for _, m := range mentions {
				if m.first < cuts[i+1] && cuts[i] < m.end {
					ranks[m.trace] = min(ranks[m.trace], m.rank)
				}
			}
			s := ranked{Item: Item{object, cuts[i], cuts[i+1] - cuts[i]}}
			sum := 0
			for _, r := range ranks {
				if r != unseen {
					s.seen++
					sum += r
				}
			}
			if s.seen == 0 {
				continue // a gap
			}
			s.mean = float64(sum) / float64(s.seen)
			sorted := slices.Sorted(slices.Values(ranks))
			s.median = sorted[(len(sorted)-1)/2]
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.median, b.median), cmp.Compare(a.mean, b.mean),
			cmp.Compare(a.Object, b.Object), cmp.Compare(a.First, b.First))
	})
	return out
}

// What bounds the work that traces can cause: the runs of one object in one trace,
// and the parts that an object is cut into.
const maxRuns, maxCuts = 64, 64
