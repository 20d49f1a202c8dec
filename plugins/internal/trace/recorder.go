package trace

import (
	"slices"
	"sync"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// maxObjects bounds the objects of one trace: more than any start reads.
	maxObjects = 32 << 10
	// maxRanges bounds the ranges of one object. Above it the closest are joined.
	maxRanges = 32
	// gap up to which two ranges are one: a read between them would have been
	// read ahead.
	gap = 128 << 10
)

// Recorder collects the accesses of one start. It is safe for concurrent use.
type Recorder struct {
	mu      sync.Mutex // guards the following
	start   time.Time  // of the first access
	end     time.Time  // of the last
	objects map[toc.Digest]*Object
	order   []*Object
	left    int64
	stopped bool
}

// Add notes an access: bytes [off, off+n), or with n == 0 that an object was opened.
func (r *Recorder) Add(d toc.Digest, off, n int64, at time.Time, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped || off < 0 || n < 0 || off+n < off {
		return
	}
	if r.objects == nil {
		r.objects = map[toc.Digest]*Object{}
		r.start = at
	}
	// A read that waited is told of when it ends, others have begun since.
	after := max(at.Sub(r.start), 0)
	o := r.objects[d]
	if o == nil {
		if len(r.order) == maxObjects {
			r.left++
			return
		}
		o = &Object{Digest: d, After: after}
		r.objects[d] = o
		r.order = append(r.order, o)
	}
	if end := at.Add(wait); end.After(r.end) {
		r.end = end
	}
	o.Wait += wait
	if n > 0 {
		if len(o.Ranges) == 0 {
			o.After = after // it may have been opened long before
		}
		o.After = min(o.After, after)
		o.Ranges = insert(o.Ranges, Range{Off: off, N: n, After: after})
	}
}

// insert adds a range to those that are sorted by offset.
func insert(ranges []Range, x Range) []Range {
	i, _ := slices.BinarySearchFunc(ranges, x.Off, func(r Range, off int64) int {
		if r.Off+r.N+gap < off {
			return -1
		}
		return 1
	})
	// ranges[i:j] are joined with x.
	j := i
	for ; j < len(ranges) && ranges[j].Off <= x.Off+x.N+gap; j++ {
		x = join(x, ranges[j])
	}
	ranges = slices.Replace(ranges, i, j, x)
	if len(ranges) <= maxRanges {
		return ranges
	}
	closest := 0
	distance := func(i int) int64 { return ranges[i+1].Off - ranges[i].Off - ranges[i].N }
	for i := range len(ranges) - 1 {
		if distance(i) < distance(closest) {
			closest = i
		}
	}
	ranges[closest] = join(ranges[closest], ranges[closest+1])
	return slices.Delete(ranges, closest+1, closest+2)
}

func join(a, b Range) Range {
	end := max(a.Off+a.N, b.Off+b.N)
	off := min(a.Off, b.Off)
	return Range{Off: off, N: end - off, After: min(a.After, b.After)}
}

// Stop ends the recording. fill tells index and size of an object, and false for
// those that are not of the image, which are left out. Stop returns nil if nothing
// was seen, and after the first call.
func (r *Recorder) Stop(fill func(toc.Digest) (index uint32, size int64, ok bool)) *Trace {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return nil
	}
	r.stopped = true
	t := &Trace{Started: r.start, Duration: r.end.Sub(r.start), Left: r.left}
	for _, o := range r.order {
		var ok bool
		if o.Index, o.Size, ok = fill(o.Digest); !ok {
			continue
		}
		for i := range o.Ranges {
			x := &o.Ranges[i]
			x.N = max(min(x.Off+x.N, o.Size)-x.Off, 0)
		}
		o.Ranges = slices.DeleteFunc(o.Ranges, func(r Range) bool { return r.N == 0 })
		t.Objects = append(t.Objects, *o)
	}
	r.objects, r.order = nil, nil
	slices.SortStableFunc(t.Objects, func(a, b Object) int { return int(a.After - b.After) })
	if len(t.Objects) == 0 {
		return nil
	}
	return t
}
