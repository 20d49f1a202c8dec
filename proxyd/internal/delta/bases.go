package delta

import (
	"cmp"
	"slices"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// minPatched is the size below which the entry of a base and a segment
	// take about what they save.
	minPatched = 64
	// maxBases is how many layers a plan takes bases from: those that have most
	// of what is needed under the same name.
	maxBases = 16
	// samples is how many objects tell which layers these are.
	samples = 128
)

// Had is a layer of which a worker has objects that patches can be made against.
type Had struct {
	DiffID toc.Digest
	Names  *Names
	// Missing and Coming are as in wire.Have: neither can be a base.
	Missing, Coming []byte
}

func (h *Had) has(object uint32) bool {
	return !missing(h.Missing, int(object)) && !missing(h.Coming, int(object))
}

// Base is an object that a patch is made against.
type Base struct {
	Layer  int // index into Bases.Layers
	Object uint32
}

// Bases is what the patches of a plan are made against.
type Bases struct {
	Layers []Had
	of     []Base // by object of the image; Layer -1: none
}

// Of returns the base of an object.
func (b *Bases) Of(object uint32) (Base, bool) {
	if b == nil || b.of[object].Layer < 0 {
		return Base{}, false
	}
	return b.of[object], true
}

// Object describes a base.
func (b *Bases) Object(base Base) *toc.Object {
	return &b.Layers[base.Layer].Names.objects[base.Object]
}

// FindBases picks for each object of a plan the object among those that the worker
// has which is most likely an older version of it: the one of a file with the same
// name, with the same name but for digits, or, of about the same size, with the same
// last element of the name.
func FindBases(img *Image, p *Plan, had []Had) *Bases {
	b := &Bases{of: make([]Base, len(img.Objects))}
	for i := range b.of {
		b.of[i].Layer = -1
	}
	var ids []uint32
	seen := make([]bool, len(img.Objects))
	for _, it := range p.Items {
		if id := it.Object; !seen[id] && img.Objects[id].Size >= minPatched {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	b.Layers = pickLayers(img, ids, had)
	used := make([]bool, len(b.Layers))
	for _, id := range ids {
		if base, ok := b.find(img, id); ok {
			b.of[id] = base
			used[base.Layer] = true
		}
	}
	// Layers that turned out to be of no use are not told to the worker.
	number := make([]int, len(used))
	n := 0
	for i, u := range used {
		if number[i] = n; u {
			b.Layers[n] = b.Layers[i]
			n++
		}
	}
	b.Layers = b.Layers[:n]
	for i := range b.of {
		if b.of[i].Layer >= 0 {
			b.of[i].Layer = number[b.of[i].Layer]
		}
	}
	return b
}

// pickLayers returns the layers that know most of the names of a sample of objects,
// by bytes.
func pickLayers(img *Image, ids []uint32, had []Had) []Had {
	had = slices.Clone(had)
	if len(had) <= maxBases {
		return had
	}
	// The largest, which matter most, and some of all.
	sample := slices.Clone(ids)
	slices.SortFunc(sample, func(a, b uint32) int { return cmp.Compare(img.Objects[b].Size, img.Objects[a].Size) })
	if len(sample) > samples {
		rest := sample[samples/2:]
		sample = sample[:samples/2]
		for i := range samples / 2 {
			sample = append(sample, rest[i*len(rest)/(samples/2)])
		}
	}
	score := make([]int64, len(had))
	order := make([]int, len(had))
	for i := range had {
		order[i] = i
		for _, id := range sample {
			known := false
			for form := range forms - 1 {
				had[i].Names.find(img.names[id][form], func(o uint32) { known = known || had[i].has(o) })
			}
			if known {
				score[i] += img.Objects[id].Size
			}
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(score[b], score[a]) })
	out := make([]Had, maxBases)
	for i := range out {
		out[i] = had[order[i]]
	}
	return out
}

// find returns the best base of an object.
func (b *Bases) find(img *Image, id uint32) (best Base, ok bool) {
	o := &img.Objects[id]
	for form := range forms {
		var distance int64
		for l := range b.Layers {
			h := &b.Layers[l]
			h.Names.find(img.names[id][form], func(object uint32) {
				old := &h.Names.objects[object]
				d := max(old.Size-o.Size, o.Size-old.Size)
				switch {
				case !h.has(object), old.Digest == o.Digest:
				case form == forms-1 && d > min(old.Size, o.Size):
				case !ok || d < distance:
					best, distance, ok = Base{l, object}, d, true
				}
			})
		}
		if ok {
			return best, true
		}
	}
	return Base{}, false
}
