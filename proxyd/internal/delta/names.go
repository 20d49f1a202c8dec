package delta

import (
	"hash/maphash"
	"path"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// A name is looked up in three forms: as it is, with its digits normalised
// (lib/libz.so.1.2.13 and lib/libz.so.1.3 are versions of one file), and the last
// element of that alone.
const forms = 3

// The seeds of the hashes make the forms differ. Hashes stay in this process. Two
// names with one hash cost a patch that does not pay.
var seeds = [forms]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed(), maphash.MakeSeed()}

// name is the hashes of the forms of a name.
type name [forms]uint64

func newName(p string) name {
	digits := normalise(p)
	return name{
		maphash.String(seeds[0], p),
		maphash.String(seeds[1], digits),
		maphash.String(seeds[2], path.Base(digits)),
	}
}

// normalise replaces each run of digits, and dots between them, by one '0'.
func normalise(p string) string {
	b := make([]byte, 0, len(p))
	digit := func(i int) bool { return i < len(p) && '0' <= p[i] && p[i] <= '9' }
	for i := 0; i < len(p); i++ {
		switch {
		case !digit(i):
			b = append(b, p[i])
		default:
			for digit(i+1) || i+1 < len(p) && p[i+1] == '.' && digit(i+2) {
				i++
			}
			b = append(b, '0')
		}
	}
	return string(b)
}

// Names finds the objects of a layer by the names of files. It is immutable.
type Names struct {
	objects []toc.Object
	// table is a hash table with open addressing: hashes of all forms to
	// objects, those with the same hash one after the other.
	table []slot
	mask  uint64
}

type slot struct {
	hash   uint64
	object uint32 // index + 1; 0: empty
}

// maxSame is how many objects are kept of those that share a form of their names:
// of ten thousand index.js the size tells little.
const maxSame = 8

// NewNames makes the Names of a layer.
func NewNames(t *toc.TOC) *Names {
	index := make(map[toc.Digest]uint32, len(t.Objects))
	for i := range t.Objects {
		index[t.Objects[i].Digest] = uint32(i)
	}
	files := 0
	for i := range t.Entries {
		if e := &t.Entries[i]; e.Type == toc.TypeReg && e.Size > 0 {
			files++
		}
	}
	size := 4
	for size < 2*forms*files {
		size *= 2
	}
	n := &Names{objects: t.Objects, table: make([]slot, size), mask: uint64(size - 1)}
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Type != toc.TypeReg || e.Size == 0 {
			continue
		}
		if object, ok := index[e.Object]; ok {
			for _, h := range newName(e.Name) {
				n.put(h, object)
			}
		}
	}
	return n
}

func (n *Names) put(h uint64, object uint32) {
	same := 0
	for i := h & n.mask; ; i = (i + 1) & n.mask {
		s := &n.table[i]
		switch {
		case s.object == 0:
			*s = slot{h, object + 1}
			return
		case s.hash != h:
		case s.object == object+1:
			return
		default:
			if same++; same == maxSame {
				return
			}
		}
	}
}

// find calls each with the objects of a hash.
func (n *Names) find(h uint64, each func(object uint32)) {
	for i := h & n.mask; n.table[i].object != 0; i = (i + 1) & n.mask {
		if n.table[i].hash == h {
			each(n.table[i].object - 1)
		}
	}
}

// Cost is the memory that Names hold, in bytes, but for the objects.
func (n *Names) Cost() int64 { return 16 * int64(len(n.table)) }
