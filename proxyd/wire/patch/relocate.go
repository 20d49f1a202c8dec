package patch

import (
	"encoding/binary"
	"sort"
)

// relocBlock is the size of the blocks that are relocated each on its own.
const relocBlock = 1 << applyBits

// Machines that a head can name.
const (
	machineX86   = 1
	machineARM64 = 2
)

// Flags of a head.
const (
	flagJcc    = 1 << iota // conditional jumps of x86-64
	flagTables             // tables of 32-bit offsets in data
	flagsKnown = 1<<iota - 1
)

// part is what of a file is loaded, and where.
type part struct {
	off, addr, size, mem int64
	code                 bool
}

// span of the map: from granule start on, bytes moved by shift.
type span struct {
	start uint32
	shift int64
}

const (
	granule   = 16
	pageBits  = 12
	lowTarget = 4096 // lower ones are numbers rather than addresses
)

// relocator rewrites the references in an old file to what moved.
type relocator struct {
	machine    byte
	flags      byte
	olds, news []part
	eh, ehSize int64 // .eh_frame_hdr in the old file
	spans      []span
	ehMove     int64

	low, high int64    // addresses of olds
	pages     []uint32 // by page of the old file: the first span that starts behind its beginning
}

// index prepares for relocate; size is that of the old file.
func (r *relocator) index(size int64) {
	r.low, r.high = 1<<62, 0
	for i := range r.olds {
		p := &r.olds[i]
		r.low = min(r.low, p.addr)
		r.high = max(r.high, p.addr+p.mem)
	}
	r.low = max(r.low, lowTarget)
	r.pages = make([]uint32, size>>pageBits+1)
	k := 0
	for i := range r.pages {
		for k < len(r.spans) && int64(r.spans[k].start)*granule <= int64(i)<<pageBits {
			k++
		}
		r.pages[i] = uint32(k)
	}
	r.ehMove, _ = r.move(r.eh)
}

// span returns the number of the span that has offset o, -1 if there is none.
func (r *relocator) span(o int64) int {
	k := int(r.pages[o>>pageBits])
	end := len(r.spans)
	if n := int(o>>pageBits) + 1; n < len(r.pages) {
		end = int(r.pages[n])
	}
	g := uint32(o / granule)
	if end-k > 8 {
		return k + sort.Search(end-k, func(i int) bool { return r.spans[k+i].start > g }) - 1
	}
	for k < end && r.spans[k].start <= g {
		k++
	}
	return k - 1
}

// inFile returns the part that has offset o in the file.
func inFile(parts []part, o int64) *part {
	for i := range parts {
		if p := &parts[i]; o >= p.off && o < p.off+p.size {
			return p
		}
	}
	return nil
}

// move returns by how much what stands at address t in the old file moved.
func (r *relocator) move(t int64) (int64, bool) {
	for i := range r.olds {
		p := &r.olds[i]
		if t < p.addr || t >= p.addr+p.mem {
			continue
		}
		if t >= p.addr+p.size { // memory without bytes in the file
			last := &r.news[len(r.news)-1]
			return last.addr + last.size - (p.addr + p.size), true
		}
		o := t - p.addr + p.off
		k := r.span(o)
		if k < 0 {
			return 0, false
		}
		n := o + r.spans[k].shift
		q := inFile(r.news, n)
		if q == nil {
			return 0, false
		}
		return n - q.off + q.addr - t, true
	}
	return 0, false
}

// target is move for a reference: it leaves alone what is no address.
func (r *relocator) target(t int64) (int64, bool) {
	if t < r.low || t >= r.high {
		return 0, false
	}
	return r.move(t)
}

// relocate rewrites b, the block at offset o of the old file.
func (r *relocator) relocate(b []byte, o int64) {
	end := o + int64(len(b))
	for at := o; at < end; {
		k := r.span(at)
		stop := end
		if k+1 < len(r.spans) {
			stop = min(stop, int64(r.spans[k+1].start)*granule)
		}
		if k >= 0 {
			r.inSpan(b[at-o:stop-o], at, r.spans[k].shift)
		}
		at = stop
	}
}

// inSpan rewrites b, which stood at offset o and is at o+shift now.
func (r *relocator) inSpan(b []byte, o, shift int64) {
	for len(b) > 0 {
		p, n := partFrom(r.olds, o, int64(len(b)))
		q, n := partFrom(r.news, o+shift, n)
		if p != nil && q != nil {
			from := o - p.off + p.addr
			to := o + shift - q.off + q.addr
			switch {
			case !p.code:
				r.data(b[:n], from, to-from)
			case r.machine == machineX86:
				r.x86(b[:n], from, to-from)
			default:
				r.arm64(b[:n], from, to-from)
			}
		}
		b, o = b[n:], o+n
	}
}

// partFrom returns the part at offset o, nil if there is none, and how far that
// holds, at most n bytes.
func partFrom(parts []part, o, n int64) (*part, int64) {
	for i := range parts {
		p := &parts[i]
		if o < p.off {
			n = min(n, p.off-o)
		} else if o < p.off+p.size {
			return p, min(n, p.off+p.size-o)
		}
	}
	return nil, n
}

var le = binary.LittleEndian

// data rewrites tables; b stood at address from and moved by move.
func (r *relocator) data(b []byte, from, move int64) {
	for i := int(-from & 7); i+8 <= len(b); i += 8 {
		w := le.Uint64(b[i:])
		if w == 0 {
			continue
		}
		if d, ok := r.target(int64(w)); ok {
			if d != 0 {
				le.PutUint64(b[i:], w+uint64(d))
			}
			continue
		}
		if r.flags&flagTables == 0 {
			continue
		}
		for k := i; k < i+8; k += 4 {
			if v := int64(int32(le.Uint32(b[k:]))); v != 0 {
				le.PutUint32(b[k:], uint32(v+r.offset(v, from+int64(k), move)))
			}
		}
	}
}

// offset returns by how much an entry v of a table of offsets changes.
func (r *relocator) offset(v, at, move int64) int64 {
	if at >= r.eh && at < r.eh+r.ehSize {
		if d, ok := r.target(r.eh + v); ok {
			return d - r.ehMove
		}
	}
	if t := at + v; r.isCode(t) {
		if d, ok := r.target(t); ok {
			return d - move
		}
	}
	return 0
}

func (r *relocator) isCode(t int64) bool {
	for i := range r.olds {
		if p := &r.olds[i]; p.code && t >= p.addr && t < p.addr+p.size {
			return true
		}
	}
	return false
}
