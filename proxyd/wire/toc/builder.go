package toc

// Builder makes the TOC of a layer while its tar is read. It accepts exactly what
// Decode accepts, so that a TOC that was built can always be read again. It is not
// safe for concurrent use.
type Builder struct {
	toc      TOC
	index    map[Digest]int
	names    int
	suffixes int
}

// NewBuilder returns an empty Builder.
func NewBuilder() *Builder { return &Builder{index: make(map[Digest]int)} }

// Object returns the index in TOC.Objects of an object that was added before.
func (b *Builder) Object(d Digest) (int, bool) {
	i, ok := b.index[d]
	return i, ok
}

// Add appends an entry. For a regular file that is not empty, e.Object and e.Size
// are its contents, and pieces the digests of its pieces if there is more than one.
// It returns the index of the object in TOC.Objects, or -1 if there are no contents,
// and whether the object is new. An entry that no TOC can hold gives an error that
// wraps ErrInvalid and leaves the Builder as it was.
func (b *Builder) Add(e Entry, pieces []Digest) (object int, fresh bool, err error) {
	if err := e.validate(); err != nil {
		return -1, false, err
	}
	if err := validateXattrs(e.Xattrs); err != nil {
		return -1, false, err
	}
	if len(b.toc.Entries) == MaxEntries {
		return -1, false, invalid("more than %d entries", MaxEntries)
	}
	prev := ""
	if n := len(b.toc.Entries); n > 0 {
		prev = b.toc.Entries[n-1].Name
	}
	names, suffixes := b.names+len(e.Name), b.suffixes+len(e.Name)-commonPrefix(prev, e.Name)
	if names > nameBudget(len(b.toc.Entries)+1, suffixes) {
		return -1, false, invalid("names of %d bytes", names)
	}
	object = -1
	if e.Type == TypeReg && (e.Size != 0 || !e.Object.IsZero()) {
		if object, fresh, err = b.object(Object{Digest: e.Object, Size: e.Size, Pieces: pieces}); err != nil {
			return -1, false, err
		}
	}
	b.names, b.suffixes = names, suffixes
	b.toc.Entries = append(b.toc.Entries, e)
	return object, fresh, nil
}

func (b *Builder) object(o Object) (int, bool, error) {
	if i, ok := b.index[o.Digest]; ok {
		if b.toc.Objects[i].Size != o.Size {
			return -1, false, invalid("object %s has two sizes", o.Digest)
		}
		return i, false, nil
	}
	if err := o.validate(); err != nil {
		return -1, false, err
	}
	i := len(b.toc.Objects)
	b.index[o.Digest] = i
	b.toc.Objects = append(b.toc.Objects, o)
	return i, true, nil
}

// TOC returns the table of contents of the layer with the given diff ID. The
// Builder must not be used after it.
func (b *Builder) TOC(diffID Digest) *TOC {
	b.toc.DiffID = diffID
	return &b.toc
}
