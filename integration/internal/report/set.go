package report

import (
	"cmp"
	"math"
	"slices"

	"github.com/starlight-delta/starlight/integration/internal/measure"
	"github.com/starlight-delta/starlight/integration/internal/needs"
)

// cell is what starts of several runs have in common.
type cell struct {
	link         Link
	system       string
	image, phase string
}

type pair struct{ image, phase string }

// set is the records of a run by what they are about, each list in the order in
// which it was first seen.
type set struct {
	environments []Environment
	links        []Link
	systems      []string
	images       []string
	starts       map[cell][]measure.Start
	bytes        map[pair]Bytes
	needs        map[pair]needs.Start
	disk         []Disk
	failures     []Record
}

func newSet(records []Record) *set {
	s := &set{starts: make(map[cell][]measure.Start), bytes: make(map[pair]Bytes), needs: make(map[pair]needs.Start)}
	for _, r := range records {
		p := pair{r.Image, r.Phase}
		switch {
		case r.Environment != nil:
			s.environments = append(s.environments, *r.Environment)
		case r.Start != nil && r.Link != nil:
			s.links, s.systems = once(s.links, *r.Link), once(s.systems, r.System)
			s.images = once(s.images, r.Image)
			c := cell{*r.Link, r.System, r.Image, r.Phase}
			s.starts[c] = append(s.starts[c], *r.Start)
		case r.Bytes != nil:
			s.images = once(s.images, r.Image)
			s.bytes[p] = *r.Bytes
		case r.Needs != nil:
			s.needs[p] = *r.Needs
		case r.Disk != nil:
			s.disk = append(s.disk, *r.Disk)
		case r.Error != "":
			s.failures = append(s.failures, r)
		}
	}
	slices.SortFunc(s.links, func(a, b Link) int {
		return cmp.Or(cmp.Compare(a.Mbit, b.Mbit), cmp.Compare(a.RTT, b.RTT))
	})
	return s
}

func once[T comparable](list []T, v T) []T {
	if slices.Contains(list, v) {
		return list
	}
	return append(list, v)
}

// get is the median over the runs of one measure.
func (s *set) get(c cell, of func(measure.Start) float64) (float64, bool) {
	var all []float64
	for _, m := range s.starts[c] {
		all = append(all, of(m))
	}
	if len(all) == 0 {
		return 0, false
	}
	return median(all), true
}

// mean is the geometric mean of one measure over the images that all of the
// systems have a figure of.
func (s *set) mean(l Link, system, phase string, of func(measure.Start) float64) (mean float64, images int) {
	var all []float64
	for _, im := range s.images {
		if !s.complete(l, im, phase) {
			continue
		}
		if v, ok := s.get(cell{l, system, im, phase}, of); ok {
			all = append(all, v)
		}
	}
	return geometric(all), len(all)
}

// complete tells whether no system lacks a figure of the image.
func (s *set) complete(l Link, image, phase string) bool {
	for _, sys := range s.systems {
		if len(s.starts[cell{l, sys, image, phase}]) == 0 {
			return false
		}
	}
	return true
}

func ready(m measure.Start) float64 { return m.Ready }

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// geometric is the geometric mean; zeros count as the smallest positive value, as
// nothing is nothing on no scale.
func geometric(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	least := math.Inf(1)
	for _, x := range v {
		if x > 0 {
			least = min(least, x)
		}
	}
	if math.IsInf(least, 1) {
		return 0
	}
	var sum float64
	for _, x := range v {
		sum += math.Log(max(x, least))
	}
	return math.Exp(sum / float64(len(v)))
}
