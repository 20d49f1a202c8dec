package patch

import "encoding/binary"

const (
	headVersion = 2
	maxOld      = 4 << 30 // bytes of an old file that can be relocated
	maxAddr     = 1 << 61
)

// encode returns the head that makes a decoder build r.
func (r *relocator) encode() []byte {
	b := []byte{headVersion, r.machine, r.flags}
	num := func(v int64) { b = binary.AppendUvarint(b, uint64(v)) }
	for i, ps := range [...][]part{r.olds, r.news} {
		num(int64(len(ps)))
		for _, p := range ps {
			for _, v := range [...]int64{p.off, p.addr, p.size, p.mem} {
				num(v)
			}
			switch {
			case i > 0:
			case p.code:
				num(1)
			default:
				num(0)
			}
		}
	}
	num(r.eh)
	num(r.ehSize)
	num(int64(len(r.spans)))
	prev := span{}
	for _, s := range r.spans {
		num(int64(s.start) - int64(prev.start))
		prev = s
	}
	prev = span{}
	for _, s := range r.spans {
		b = binary.AppendVarint(b, s.shift-prev.shift)
		prev = s
	}
	return b
}

// parseHead returns the relocator that a head describes, for an old file of this size.
func parseHead(b []byte, size int64) (*relocator, error) {
	if len(b) > MaxHead {
		return nil, invalid("head of %d bytes", len(b))
	}
	if size > maxOld {
		return nil, invalid("an object of %d bytes is relocated", size)
	}
	if len(b) < 3 || b[0] != headVersion {
		return nil, invalid("the head has no version that is known")
	}
	r := &relocator{machine: b[1], flags: b[2]}
	if r.machine != machineX86 && r.machine != machineARM64 || r.flags&^flagsKnown != 0 {
		return nil, invalid("machine %d, flags %#x", r.machine, r.flags)
	}
	b = b[3:]
	ok := true
	num := func(most int64) int64 {
		v, good := uvarint(&b, uint64(most))
		ok = ok && good
		return int64(v)
	}
	for i, ps := range [...]*[]part{&r.olds, &r.news} {
		n := num(maxParts)
		for range n {
			p := part{off: num(MaxSize), addr: num(maxAddr), size: num(MaxSize), mem: num(MaxSize)}
			if i == 0 {
				p.code = num(1) == 1
				ok = ok && p.off+p.size <= size
			}
			if k := len(*ps); k > 0 {
				ok = ok && (*ps)[k-1].off+(*ps)[k-1].size <= p.off
			}
			*ps = append(*ps, p)
		}
		if n == 0 || !ok {
			return nil, invalid("the parts of a file are malformed")
		}
	}
	r.eh, r.ehSize = num(maxAddr), num(MaxSize)
	n := int(num(maxRanges))
	if !ok || n > len(b)/2 {
		return nil, invalid("the map of the head is cut off")
	}
	r.spans = make([]span, n)
	granules := (size + granule - 1) / granule
	at := int64(0)
	for i := range r.spans {
		d := num(granules)
		at += d
		ok = ok && (d > 0 || i == 0) && at < granules
		r.spans[i].start = uint32(at)
	}
	shift := int64(0)
	for i := range r.spans {
		d, good := varint(&b, 2*MaxSize)
		shift += d
		ok = ok && good && shift <= MaxSize && shift >= -MaxSize
		r.spans[i].shift = shift
	}
	if !ok || len(b) > 0 {
		return nil, invalid("the map of the head is malformed")
	}
	r.index(size)
	return r, nil
}
