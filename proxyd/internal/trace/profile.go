package trace

import (
	"encoding/json"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Profile is the order of an image by the paths of its files, so that it can be
// applied to the next version.
type Profile struct {
	// Full: traces saw all that starts read.
	Full bool `json:"full,omitempty"`
	// Group is that of the order.
	Group string `json:"group,omitempty"`
	// Entries, the most urgent first.
	Entries []Entry `json:"entries"`
}

// Entry is a file, or a run of its pieces.
type Entry struct {
	Path string `json:"p"`
	// First piece, and how many; 0 are all from First on.
	First  uint32 `json:"f,omitempty"`
	Pieces uint32 `json:"n,omitempty"`
	// End: the run ends with the file, as the directory of an archive does. First
	// then counts from the end.
	End bool `json:"e,omitempty"`
	// Time of the order, if there is a group.
	Time uint32 `json:"t,omitempty"`
}

const (
	maxEntries = 32 << 10
	maxProfile = 8 << 20 // bytes, decoded
)

// File is a regular file of an image.
type File struct {
	Object uint32
	Pieces uint32
}

// NewProfile names by their paths what an order says to be hot. paths tells the
// path of each object, or "".
func NewProfile(o Order, pieces []uint32, paths []string) *Profile {
	p := &Profile{Full: o.Full > 0, Group: o.Group}
	for i, it := range o.Items[:o.Hot] {
		if paths[it.Object] == "" || len(p.Entries) == maxEntries {
			continue
		}
		e := Entry{Path: paths[it.Object], First: it.First, Pieces: it.Pieces}
		if i < len(o.Times) {
			e.Time = o.Times[i]
		}
		n := pieces[it.Object]
		switch {
		case it.First == 0 && (it.Pieces == 0 || it.Pieces == n):
			e.Pieces = 0
		case it.Pieces == 0 || it.First+it.Pieces == n:
			e.First, e.Pieces, e.End = n-it.First, 0, true
		}
		p.Entries = append(p.Entries, e)
	}
	return p
}

// Encode gives the form in which a profile is stored.
func (p *Profile) Encode() ([]byte, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return enc.EncodeAll(b, nil), enc.Close()
}

// DecodeProfile reads what Encode wrote.
func DecodeProfile(b []byte) (*Profile, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxProfile))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	if b, err = dec.DecodeAll(b, nil); err != nil {
		return nil, err
	}
	p := &Profile{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, err
	}
	return p, nil
}

// Files are those of an image, by path and by what their paths have in common
// with those of other versions.
type Files struct {
	exact   map[string]File
	similar map[string][]string // of exact
}

// NewFiles returns Files without any.
func NewFiles() *Files { return &Files{map[string]File{}, map[string][]string{}} }

// Add adds a file.
func (f *Files) Add(path string, file File) {
	f.exact[path] = file
	if s := withoutVersions(path); s != path {
		f.similar[s] = append(f.similar[s], path)
	}
}

// find returns the file at a path, or the one whose path differs in numbers only.
func (f *Files) find(path string) (File, bool) {
	if file, ok := f.exact[path]; ok {
		return file, true
	}
	s := withoutVersions(path)
	if s == path {
		return File{}, false
	}
	best, common := "", -1
	for _, other := range f.similar[s] {
		// Of libfoo.so.1 and libfoo.so.2.3 the longest common beginning wins.
		n := 0
		for n < len(path) && n < len(other) && path[n] == other[n] {
			n++
		}
		if n > common {
			best, common = other, n
		}
	}
	file, ok := f.exact[best]
	return file, ok && len(f.similar[s]) <= maxSimilar
}

// maxSimilar names that differ in numbers only are versions of one thing; more
// of them are a row of things.
const maxSimilar = 4

// Apply is the order that a profile gives to other files, all of it hot, and how many
// of its entries it found there.
func (p *Profile) Apply(f *Files) (o Order, found int) {
	o.Group = p.Group
	for _, e := range p.Entries {
		file, ok := f.find(e.Path)
		if !ok {
			continue
		}
		found++
		it := Item{Object: file.Object, First: e.First, Pieces: e.Pieces}
		if e.End {
			it.First = file.Pieces - min(e.First, file.Pieces)
		}
		if it.First >= file.Pieces {
			continue // it became shorter
		}
		o.Items = append(o.Items, it)
		if o.Group != "" {
			o.Times = append(o.Times, e.Time)
		}
	}
	o.Hot = len(o.Items)
	return o, found
}

// withoutVersions replaces the numbers of a path, so that libssl.so.3.0.1 and
// libssl.so.3.0.2, or python3.11 and python3.12, become the same.
func withoutVersions(path string) string {
	if !strings.ContainsAny(path, "0123456789") {
		return path
	}
	var b strings.Builder
	for i := 0; i < len(path); {
		c := path[i]
		if c < '0' || c > '9' {
			b.WriteByte(c)
			i++
			continue
		}
		// 1, 1.2 and 1.2.3 are all one number.
		for i < len(path) && (path[i] >= '0' && path[i] <= '9' || path[i] == '.' && i+1 < len(path) && path[i+1] >= '0' && path[i+1] <= '9') {
			i++
		}
		b.WriteByte('#')
	}
	return b.String()
}
