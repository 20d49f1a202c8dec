package patch

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"slices"
)

// window is a file seen through a bounded number of blocks in memory, relocated
// if there is a relocator. The first error of a read stays in err; what cannot be
// read looks empty. Slices that it returns hold until the block after next is
// asked for.
type window struct {
	r     io.ReaderAt
	size  int64
	bits  uint // log2 of the size of blocks
	reloc *relocator
	err   error

	block []byte // the present block
	at0   int64  // its number

	blocks []slot // by number; nil for what is not in memory
	held   []int64
	limit  int
	clock  uint64
}

type slot struct {
	b    []byte
	used uint64
}

// newWindow returns a window that holds about memory bytes, at least 4 blocks.
func newWindow(r io.ReaderAt, size int64, bits uint, memory int64, reloc *relocator) *window {
	n := (size + 1<<bits - 1) >> bits
	return &window{r: r, size: size, bits: bits, reloc: reloc, at0: -1,
		blocks: make([]slot, n), limit: int(max(4, memory>>bits))}
}

// from returns the bytes at offset o up to the end of its block: some for
// 0 <= o < size, unless there was an error.
func (w *window) from(o int64) []byte {
	if o>>w.bits != w.at0 {
		w.turn(o >> w.bits)
	}
	if i := int(o & (1<<w.bits - 1)); i < len(w.block) {
		return w.block[i:]
	}
	return nil
}

// before returns the bytes from the beginning of the block up to offset o,
// 0 < o <= size.
func (w *window) before(o int64) []byte {
	o--
	if o>>w.bits != w.at0 {
		w.turn(o >> w.bits)
	}
	if i := int(o & (1<<w.bits - 1)); i < len(w.block) {
		return w.block[:i+1]
	}
	return nil
}

// turn makes block n the present one.
func (w *window) turn(n int64) {
	w.at0, w.block = n, nil
	if n < 0 || n >= int64(len(w.blocks)) {
		return
	}
	s := &w.blocks[n]
	w.clock++
	s.used = w.clock
	if s.b == nil {
		s.b = w.load(n)
	}
	w.block = s.b
}

// load reads block n into the buffer of the one that was not used for longest.
func (w *window) load(n int64) []byte {
	if w.err != nil {
		return nil
	}
	var b []byte
	if len(w.held) < w.limit {
		b = make([]byte, min(1<<w.bits, w.size))
		w.held = append(w.held, n)
	} else {
		old := 0
		for i, h := range w.held {
			if w.blocks[h].used < w.blocks[w.held[old]].used {
				old = i
			}
		}
		s := &w.blocks[w.held[old]]
		b, s.b = s.b[:cap(s.b)], nil
		w.held[old] = n
	}
	b = b[:min(1<<w.bits, w.size-n<<w.bits)]
	if err := readFull(w.r, b, n<<w.bits); err != nil {
		w.err = err
		w.held = slices.DeleteFunc(w.held, func(h int64) bool { return h == n })
		return nil
	}
	if w.reloc != nil {
		for i := 0; i < len(b); i += relocBlock {
			w.reloc.relocate(b[i:min(i+relocBlock, len(b))], n<<w.bits+int64(i))
		}
	}
	return b
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(b), off, err)
}

// failed returns the error of a read and forgets it.
func (w *window) failed() error {
	err := w.err
	w.err, w.at0, w.block = nil, -1, nil
	return err
}

// match returns how many bytes at offset o are those of b.
func (w *window) match(o int64, b []byte) int {
	n := 0
	for len(b) > 0 && o >= 0 && o < w.size {
		s := w.from(o)
		k := matchLen(s, b)
		n += k
		if k < len(s) || k == 0 {
			break
		}
		o += int64(k)
		b = b[k:]
	}
	return n
}

// equal counts the bytes from offset o on that are as in b, in a coarse but quick
// way: what stands at the seam of two blocks counts as different.
func (w *window) equal(o int64, b []byte) int {
	n := 0
	for len(b) > 0 {
		if o < 0 {
			b = b[min(-o, int64(len(b))):]
			o = 0
			continue
		}
		if o >= w.size {
			break
		}
		s := w.from(o)
		k := min(len(s), len(b))
		if k == 0 {
			break
		}
		i := 0
		for ; i+8 <= k; i += 8 {
			n += equal8(s[i:], b[i:])
		}
		for ; i < k; i++ {
			if s[i] == b[i] {
				n++
			}
		}
		o += int64(k)
		b = b[k:]
	}
	return n
}

// matchLen returns the length of the common prefix.
func matchLen(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)>>3
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// equal8 counts equal bytes among the first 8.
func equal8(a, b []byte) int {
	x := binary.LittleEndian.Uint64(a) ^ binary.LittleEndian.Uint64(b)
	x |= x >> 4
	x |= x >> 2
	x |= x >> 1
	return 8 - bits.OnesCount64(x&0x0101010101010101)
}
