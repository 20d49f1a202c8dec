package toc

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Decode reads what Encode has written. Anything malformed, inconsistent or over
// the limits gives an error that wraps ErrInvalid. What it allocates is
// proportional to len(b), whatever b says, and shares no memory with b. Entries
// may share their Xattrs.
func Decode(b []byte) (*TOC, error) {
	d, err := open(b)
	if err != nil {
		return nil, err
	}
	if err := d.objects(); err != nil {
		return nil, err
	}
	if err := d.entries(); err != nil {
		return nil, err
	}
	for c := range d.cols {
		if !d.cols[c].done() {
			return nil, invalid("column %d is malformed", c)
		}
	}
	return d.toc, nil
}

type decoder struct {
	toc      *TOC
	nEntries int
	nObjects int
	cols     [columns]column
}

// column is what is left of a column; bad is set by the first read that fails.
type column struct {
	b   []byte
	bad bool
}

func (c *column) done() bool { return len(c.b) == 0 && !c.bad }

func (c *column) num(most uint64) uint64 {
	if len(c.b) > 0 && c.b[0] < 0x80 && uint64(c.b[0]) <= most { // by far the most
		v := c.b[0]
		c.b = c.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(c.b)
	if n <= 0 || v > most {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *column) signed() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *column) take(n int) []byte {
	if n > len(c.b) {
		c.bad, c.b = true, nil
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *column) digest() (d Digest) {
	copy(d[:], c.take(len(d)))
	return d
}

// open reads the fixed part and cuts the columns.
func open(b []byte) (*decoder, error) {
	if len(b) > MaxEncoded {
		return nil, invalid("%d bytes", len(b))
	}
	in := column{b: b}
	head := string(in.take(len(magic)))
	switch {
	case in.bad || head[:4] != magic[:4]:
		return nil, invalid("this is none")
	case head[4] != version:
		return nil, fmt.Errorf("toc: version %d: %w", head[4], ErrVersion)
	case head != magic:
		return nil, invalid("reserved bytes are set")
	}
	d := &decoder{toc: &TOC{DiffID: in.digest()}}
	d.nEntries = int(in.num(MaxEntries))
	d.nObjects = int(in.num(MaxEntries))
	for c := range d.cols {
		d.cols[c].b = in.take(int(in.num(MaxEncoded)))
	}
	switch {
	case !in.done():
		return nil, invalid("columns do not fill it")
	case len(d.cols[colTypes].b) != d.nEntries || len(b) < minEntry*d.nEntries:
		return nil, invalid("it cannot hold %d entries", d.nEntries)
	case len(d.cols[colDigests].b) != d.nObjects*len(Digest{}):
		return nil, invalid("it cannot hold %d objects", d.nObjects)
	case len(d.cols[colPieces].b)%len(Digest{}) != 0:
		return nil, invalid("piece digests are cut off")
	}
	return d, nil
}

func (d *decoder) objects() error {
	d.toc.Objects = make([]Object, d.nObjects)
	seen := make(map[Digest]struct{}, d.nObjects)
	pieces := make([]Digest, len(d.cols[colPieces].b)/len(Digest{}))
	for i := range pieces {
		pieces[i] = d.cols[colPieces].digest()
	}
	for i := range d.toc.Objects {
		o := &d.toc.Objects[i]
		o.Digest = d.cols[colDigests].digest()
		o.Size = int64(d.cols[colSizes].num(MaxObjectSize))
		n := pieceDigests(o.Size)
		if n > len(pieces) {
			return invalid("object of %d bytes lacks piece digests", o.Size)
		}
		if n > 0 {
			o.Pieces, pieces = pieces[:n:n], pieces[n:]
		}
		if err := o.validate(); err != nil {
			return err
		}
		if _, dup := seen[o.Digest]; dup {
			return invalid("object %s occurs twice", o.Digest)
		}
		seen[o.Digest] = struct{}{}
	}
	if len(pieces) > 0 {
		return invalid("%d piece digests are left over", len(pieces))
	}
	return nil
}

func (d *decoder) entries() error {
	names, err := d.names()
	if err != nil {
		return err
	}
	owners := d.owners()
	sets, err := d.sets()
	if err != nil {
		return err
	}
	links := string(d.cols[colLinks].take(len(d.cols[colLinks].b)))
	seconds, next := int64(0), 0
	d.toc.Entries = make([]Entry, d.nEntries)
	for i := range d.toc.Entries {
		e := &d.toc.Entries[i]
		e.Name = names[i]
		e.Type = Type(d.cols[colTypes].take(1)[0])
		seconds += d.cols[colSeconds].signed()
		e.MtimeSec = seconds
		e.MtimeNsec = uint32(d.cols[colNanos].num(math.MaxUint32))
		o := d.cols[colOwner].num(math.MaxUint32)
		if o >= uint64(len(owners)) {
			return invalid("%.200q: owner %d is not known", e.Name, o)
		}
		e.Mode, e.UID, e.GID = owners[o].mode, owners[o].uid, owners[o].gid
		x := d.cols[colXattr].num(math.MaxUint32)
		if x > uint64(len(sets)) {
			return invalid("%.200q: xattrs %d are not known", e.Name, x)
		}
		if x > 0 {
			e.Xattrs = sets[x-1]
		}
		switch e.Type {
		case TypeReg:
			if err := d.contents(e, &next); err != nil {
				return err
			}
		case TypeSymlink, TypeLink:
			n := int(d.cols[colLink].num(MaxName))
			if n > len(links) {
				return invalid("%.200q: the target is cut off", e.Name)
			}
			e.Link, links = links[:n], links[n:]
		case TypeChar, TypeBlock:
			e.DevMajor = uint32(d.cols[colDevices].num(math.MaxUint32))
			e.DevMinor = uint32(d.cols[colDevices].num(math.MaxUint32))
		}
		if err := e.validate(); err != nil {
			return err
		}
	}
	if links != "" {
		return invalid("%d bytes of targets are left over", len(links))
	}
	if next != d.nObjects {
		return invalid("only %d of %d objects are used", next, d.nObjects)
	}
	return nil
}

// contents sets the object of a regular file; next is the number of objects seen.
func (d *decoder) contents(e *Entry, next *int) error {
	const known = 2
	ref := d.cols[colContents].num(known + MaxEntries)
	id := int(ref) - known
	switch ref {
	case 0:
		return nil
	case 1:
		id = *next
		*next++
	}
	if id >= *next || id >= d.nObjects {
		return invalid("%.200q: object %d is not known", e.Name, id)
	}
	e.Object, e.Size = d.toc.Objects[id].Digest, d.toc.Objects[id].Size
	return nil
}

// names undoes the front coding. All names are slices of one string.
func (d *decoder) names() ([]string, error) {
	prefixes, suffixes := d.cols[colPrefix], d.cols[colSuffix]
	total := 0
	for range d.nEntries {
		total += int(prefixes.num(MaxName) + suffixes.num(MaxName))
	}
	rest := &d.cols[colNames]
	if total > nameBudget(d.nEntries, len(rest.b)) {
		return nil, invalid("names of %d bytes", total)
	}
	arena := make([]byte, 0, total)
	ends := make([]int, d.nEntries)
	start := 0 // of the name before
	for i := range ends {
		p := int(d.cols[colPrefix].num(MaxName))
		s := rest.take(int(d.cols[colSuffix].num(MaxName)))
		if p > len(arena)-start {
			return nil, invalid("entry %d: name is malformed", i)
		}
		prev := arena[start : start+p]
		start = len(arena)
		arena = append(append(arena, prev...), s...)
		ends[i] = len(arena)
	}
	all := string(arena)
	names := make([]string, d.nEntries)
	start = 0
	for i, end := range ends {
		names[i] = all[start:end]
		start = end
	}
	return names, nil
}

func (d *decoder) owners() []owner {
	var out []owner
	c := &d.cols[colOwners]
	for len(c.b) > 0 {
		out = append(out, owner{
			uint32(c.num(math.MaxUint32)), uint32(c.num(math.MaxUint32)), uint32(c.num(math.MaxUint32)),
		})
	}
	return out
}

func (d *decoder) sets() ([][]Xattr, error) {
	var strs []string
	for c := &d.cols[colStrings]; len(c.b) > 0; {
		strs = append(strs, string(c.take(int(c.num(MaxXattrValue)))))
	}
	var sets [][]Xattr
	for c := &d.cols[colXattrs]; len(c.b) > 0; {
		n := int(c.num(MaxXattrs))
		if n == 0 || 2*n > len(c.b) {
			return nil, invalid("xattrs are malformed")
		}
		set := make([]Xattr, n)
		for i := range set {
			name, value := c.num(math.MaxUint32), c.num(math.MaxUint32)
			if max(name, value) >= uint64(len(strs)) {
				return nil, invalid("xattrs are malformed")
			}
			set[i] = Xattr{strs[name], strs[value]}
		}
		if err := validateXattrs(set); err != nil {
			return nil, err
		}
		sets = append(sets, set)
	}
	return sets, nil
}
