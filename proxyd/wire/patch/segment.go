package patch

import "encoding/binary"

// builder writes segments.
type builder struct {
	out, ops, gaps, values, literal []byte
}

// segment encodes the ops that make the piece nw at offset base. The result holds until
// the next call.
func (s *builder) segment(old *window, base int64, nw []byte, ops []op) []byte {
	s.ops, s.gaps, s.values, s.literal = s.ops[:0], s.gaps[:0], s.values[:0], s.literal[:0]
	at, gap, rest := base, 0, nw
	for _, p := range ops {
		s.ops = binary.AppendVarint(s.ops, p.old-at)
		s.ops = binary.AppendUvarint(s.ops, uint64(p.copy))
		s.ops = binary.AppendUvarint(s.ops, uint64(p.lit))
		at = p.old + int64(p.copy)
		gap = s.changes(old, p.old, rest[:p.copy], gap)
		rest = rest[p.copy:]
		s.literal = append(s.literal, rest[:p.lit]...)
		rest = rest[p.lit:]
	}
	s.out = append(s.out[:0], segmentOps)
	for _, c := range [...][]byte{s.ops, s.gaps, s.values} {
		s.out = binary.AppendUvarint(s.out, uint64(len(c)))
	}
	if len(s.out)+len(s.ops)+len(s.gaps)+len(s.values)+len(s.literal) > len(nw) {
		return append(append(s.out[:0], segmentPlain), nw...)
	}
	for _, c := range [...][]byte{s.ops, s.gaps, s.values, s.literal} {
		s.out = append(s.out, c...)
	}
	return s.out
}

// changes writes where b is not what stands at offset o. It takes and returns the
// number of bytes since the last change.
func (s *builder) changes(old *window, o int64, b []byte, gap int) int {
	for len(b) > 0 {
		a := old.from(o)
		a = a[:min(len(a), len(b))]
		if len(a) == 0 {
			return gap // the window has the error
		}
		for i := 0; i < len(a); {
			k := matchLen(a[i:], b[i:len(a)])
			gap += k
			i += k
			if i < len(a) {
				s.gaps = binary.AppendUvarint(s.gaps, uint64(gap))
				s.values = append(s.values, b[i]-a[i])
				gap = 0
				i++
			}
		}
		o += int64(len(a))
		b = b[len(a):]
	}
	return gap
}

// The first byte of a segment.
const (
	segmentPlain = 0
	segmentOps   = 1
)

// parts are the streams of a segment.
type parts struct {
	ops, gaps, values, literal []byte
}

func cut(b []byte) (p parts, err error) {
	var sizes [3]int
	for i := range sizes {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > MaxSegment {
			return p, invalid("sizes of a segment")
		}
		sizes[i], b = int(v), b[n:]
	}
	for i, c := range [...]*[]byte{&p.ops, &p.gaps, &p.values} {
		if sizes[i] > len(b) {
			return p, invalid("streams of a segment are cut off")
		}
		*c, b = b[:sizes[i]], b[sizes[i]:]
	}
	p.literal = b
	return p, nil
}

// uvarint takes a number of at most most from the front of b; ok is false if there is none.
func uvarint(b *[]byte, most uint64) (v uint64, ok bool) {
	if len(*b) > 0 && (*b)[0] < 0x80 && uint64((*b)[0]) <= most { // by far the most
		v, *b = uint64((*b)[0]), (*b)[1:]
		return v, true
	}
	v, n := binary.Uvarint(*b)
	if n <= 0 || v > most {
		return 0, false
	}
	*b = (*b)[n:]
	return v, true
}

// varint takes a signed number whose absolute value is at most most.
func varint(b *[]byte, most int64) (v int64, ok bool) {
	v, n := binary.Varint(*b)
	if n <= 0 || v > most || v < -most {
		return 0, false
	}
	*b = (*b)[n:]
	return v, true
}
