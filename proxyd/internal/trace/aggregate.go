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
	// Group that the image was traced in last, or "", and when each hot item was read
	// there, in milliseconds since the first container of the group began: by this the
	// orders of the group's images are one. Times never decrease.
	Group string
	Times []uint32
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
	partial := 0
	for _, t := range traces {
		if t.Partial {
			partial++
		}
	}
	o := Order{Full: len(traces) - partial, Group: group(traces)}
	var hot, waited, rare []ranked
	for _, s := range rank(traces, o.Full, o.Group, pieces) {
		switch {
		case s.median != unseen:
			hot = append(hot, s)
		case s.partial > 0 && s.partial*partialShare >= partial:
			waited = append(waited, s)
		default:
			rare = append(rare, s)
		}
	}
	slices.SortStableFunc(rare, func(a, b ranked) int { return b.seen - a.seen })
	last := uint32(0)
	for _, s := range append(hot, waited...) {
		o.Items = append(o.Items, s.Item)
		if o.Group != "" {
			last = max(last, s.time)
			o.Times = append(o.Times, last)
		}
	}
	o.Hot = len(o.Items)
	for _, s := range rare {
		o.Items = append(o.Items, s.Item)
	}
	return o.joined()
}

// group is the one of the newest trace that has one and saw all that was read. The
// newest trace is the first.
func group(traces []*Trace) string {
	for _, t := range traces {
		if !t.Partial && t.Group != "" {
			return t.Group
		}
	}
	return ""
}

// joined puts neighbouring pieces that follow each other into one item.
func (o Order) joined() Order {
	out := Order{Items: make([]Item, 0, len(o.Items)), Full: o.Full, Group: o.Group}
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
		if i < len(o.Times) {
			out.Times = append(out.Times, o.Times[i])
		}
	}
	if o.Hot > 0 {
		out.Hot = max(out.Hot, 1)
	}
	return out
}

// ranked is a run of pieces that each trace saw as a whole, or not at all.
type ranked struct {
	Item
	seen, partial int     // traces that saw it, and how many of them are partial
	median        int     // rank in full traces; unseen if most of them did not see it
	mean          float64 // rank in those traces that saw it
	time          uint32  // median in the traces of the group that saw it
}

// mention is what one trace says of an object.
type mention struct {
	trace, rank int
	first, end  uint32
	time        uint32
}

// What bounds the work that traces can cause: the runs of one object in one trace,
// and the parts that an object is cut into.
const maxRuns, maxCuts = 64, 64

// rank cuts the objects where traces differ, and sorts the parts by median rank,
// then by mean rank. full is the number of traces that are not partial; times are
// those of a group.
func rank(traces []*Trace, full int, group string, pieces []uint32) []ranked {
	by := make([][]mention, len(pieces))
	for ti, t := range traces {
		for r, it := range t.Items {
			if int64(it.Object) >= int64(len(pieces)) || it.First >= pieces[it.Object] {
				continue
			}
			m := by[it.Object]
			if len(m) >= maxRuns && m[len(m)-maxRuns].trace == ti {
				continue
			}
			end := pieces[it.Object]
			if it.Pieces > 0 && it.Pieces < end-it.First {
				end = it.First + it.Pieces
			}
			by[it.Object] = append(m, mention{ti, r, it.First, end, it.Time})
		}
	}
	var out []ranked
	ranks, sorted := make([]int, len(traces)), make([]int, 0, full)
	var times []uint32
	var cuts []uint32
	for object, mentions := range by {
		cuts = cutsOf(mentions, cuts[:0])
		for i := 0; i+1 < len(cuts); i++ {
			for j := range ranks {
				ranks[j] = unseen
			}
			times = times[:0]
			for _, m := range mentions {
				if m.first >= cuts[i+1] || cuts[i] >= m.end {
					continue
				}
				if t := traces[m.trace]; ranks[m.trace] == unseen && group != "" && t.Group == group && !t.Partial {
					times = append(times, m.time) // of the first read: traces are in their order
				}
				ranks[m.trace] = min(ranks[m.trace], m.rank)
			}
			s := ranked{Item: Item{uint32(object), cuts[i], cuts[i+1] - cuts[i]}, median: unseen}
			sum := 0
			sorted = sorted[:0]
			for j, r := range ranks {
				if !traces[j].Partial {
					sorted = append(sorted, r)
				}
				if r == unseen {
					continue
				}
				s.seen++
				sum += r
				if traces[j].Partial {
					s.partial++
				}
			}
			if s.seen == 0 {
				continue // a gap
			}
			s.mean = float64(sum) / float64(s.seen)
			if n := len(times); n > 0 {
				slices.Sort(times)
				s.time = times[(n-1)/2]
			}
			if full > 0 {
				slices.Sort(sorted)
				s.median = sorted[(full-1)/2]
			}
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.median, b.median), cmp.Compare(a.mean, b.mean),
			cmp.Compare(a.Object, b.Object), cmp.Compare(a.First, b.First))
	})
	return out
}

// cutsOf lists where mentions of an object begin and end.
func cutsOf(mentions []mention, cuts []uint32) []uint32 {
	for _, m := range mentions {
		cuts = append(cuts, m.first, m.end)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	if len(cuts) > maxCuts { // nobody reads like that: all of it, then
		cuts = append(cuts[:1], cuts[len(cuts)-1])
	}
	return cuts
}
