package wire

import (
	"encoding/binary"
	"math"
)

// AppendRanges appends ranges as the payload of a local frame has them: neighbours in
// the object list take one byte each.
func AppendRanges(b []byte, ranges []Range) []byte {
	prev := int64(-1)
	for _, r := range ranges {
		v := (int64(r.Object) - prev - 1) << 1
		part := r.First > 0 || r.Pieces > 0
		if part {
			v |= 1
		}
		b = binary.AppendVarint(b, v)
		if part {
			b = binary.AppendUvarint(b, uint64(r.First))
			b = binary.AppendUvarint(b, uint64(r.Pieces))
		}
		prev = int64(r.Object)
	}
	return b
}

// DecodeRanges reads what AppendRanges wrote, up to the end of b. More than most of
// them, and whatever else is malformed, gives an error that wraps [toc.ErrInvalid].
func DecodeRanges(b []byte, most int) ([]Range, error) {
	ranges := make([]Range, 0, min(most, len(b)))
	prev := int64(-1)
	for len(b) > 0 {
		v, n := binary.Varint(b)
		if n <= 0 || len(ranges) == most {
			return nil, invalid("malformed ranges")
		}
		in := uvarints{b: b[n:]}
		// Far from the ends of int64, as v>>1 is within 63 bits and prev within 32.
		if prev += v>>1 + 1; prev < 0 || prev > math.MaxUint32 {
			return nil, invalid("malformed ranges")
		}
		r := Range{Object: uint32(prev)}
		if v&1 != 0 {
			r.First, r.Pieces = uint32(in.next(math.MaxUint32)), uint32(in.next(math.MaxUint32))
		}
		if in.bad {
			return nil, invalid("malformed ranges")
		}
		ranges, b = append(ranges, r), in.b
	}
	return ranges, nil
}
