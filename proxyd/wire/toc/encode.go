package toc

import (
	"encoding/binary"
	"strings"
)

// Encode returns the encoding of a valid TOC, one that a [Builder] or [Decode]
// made. Equal TOCs have equal encodings. An inconsistent TOC gives an encoding that
// Decode refuses.
func (t *TOC) Encode() []byte {
	var e encoder
	e.entries(t)
	e.objects(t)
	size := len(magic) + len(t.DiffID) + 2*binary.MaxVarintLen64
	for _, c := range e.cols {
		size += binary.MaxVarintLen64 + len(c)
	}
	out := make([]byte, 0, size)
	out = append(out, magic...)
	out = append(out, t.DiffID[:]...)
	out = binary.AppendUvarint(out, uint64(len(t.Entries)))
	out = binary.AppendUvarint(out, uint64(len(t.Objects)))
	for _, c := range e.cols {
		out = binary.AppendUvarint(out, uint64(len(c)))
		out = append(out, c...)
	}
	return out
}

type owner struct{ mode, uid, gid uint32 }

type encoder struct {
	cols    [columns][]byte
	owners  map[owner]uint64
	strings map[string]uint64
	sets    map[string]uint64
}

func (e *encoder) num(col int, v uint64) {
	e.cols[col] = binary.AppendUvarint(e.cols[col], v)
}

func (e *encoder) entries(t *TOC) {
	e.owners, e.strings, e.sets = map[owner]uint64{}, map[string]uint64{}, map[string]uint64{}
	ids := make(map[Digest]int, len(t.Objects))
	for i := range t.Objects {
		ids[t.Objects[i].Digest] = i
	}
	prev, seconds, next := "", int64(0), 0
	for i := range t.Entries {
		n := &t.Entries[i]
		p := commonPrefix(prev, n.Name)
		e.num(colPrefix, uint64(p))
		e.num(colSuffix, uint64(len(n.Name)-p))
		e.cols[colNames] = append(e.cols[colNames], n.Name[p:]...)
		prev = n.Name
		e.cols[colTypes] = append(e.cols[colTypes], byte(n.Type))
		e.owner(owner{n.Mode, n.UID, n.GID})
		e.cols[colSeconds] = binary.AppendVarint(e.cols[colSeconds], n.MtimeSec-seconds)
		seconds = n.MtimeSec
		e.num(colNanos, uint64(n.MtimeNsec))
		e.xattrs(n.Xattrs)
		switch n.Type {
		case TypeSymlink, TypeLink:
			e.num(colLink, uint64(len(n.Link)))
			e.cols[colLinks] = append(e.cols[colLinks], n.Link...)
		case TypeChar, TypeBlock:
			e.num(colDevices, uint64(n.DevMajor))
			e.num(colDevices, uint64(n.DevMinor))
		case TypeReg:
			id, ok := ids[n.Object]
			switch {
			case n.Size == 0:
				e.num(colContents, 0)
			case !ok:
				e.num(colContents, uint64(2+len(t.Objects)))
			case id == next:
				e.num(colContents, 1)
				next++
			default:
				e.num(colContents, uint64(2+id))
			}
		}
	}
}

func (e *encoder) objects(t *TOC) {
	for i := range t.Objects {
		o := &t.Objects[i]
		e.num(colSizes, uint64(o.Size))
		e.cols[colDigests] = append(e.cols[colDigests], o.Digest[:]...)
		for _, p := range o.Pieces {
			e.cols[colPieces] = append(e.cols[colPieces], p[:]...)
		}
	}
}

func (e *encoder) owner(o owner) {
	i, ok := e.owners[o]
	if !ok {
		i = uint64(len(e.owners))
		e.owners[o] = i
		e.num(colOwners, uint64(o.mode))
		e.num(colOwners, uint64(o.uid))
		e.num(colOwners, uint64(o.gid))
	}
	e.num(colOwner, i)
}

func (e *encoder) xattrs(set []Xattr) {
	if len(set) == 0 {
		e.num(colXattr, 0)
		return
	}
	key := binary.AppendUvarint(nil, uint64(len(set)))
	for _, x := range set {
		key = binary.AppendUvarint(key, e.str(x.Name))
		key = binary.AppendUvarint(key, e.str(x.Value))
	}
	i, ok := e.sets[string(key)]
	if !ok {
		i = uint64(len(e.sets))
		e.sets[string(key)] = i
		e.cols[colXattrs] = append(e.cols[colXattrs], key...)
	}
	e.num(colXattr, i+1)
}

func (e *encoder) str(s string) uint64 {
	i, ok := e.strings[s]
	if !ok {
		i = uint64(len(e.strings))
		e.strings[strings.Clone(s)] = i
		e.num(colStrings, uint64(len(s)))
		e.cols[colStrings] = append(e.cols[colStrings], s...)
	}
	return i
}

func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
