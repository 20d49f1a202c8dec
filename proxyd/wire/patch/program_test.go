package patch

import (
	"encoding/binary"
	"math/rand/v2"
)

// testProgram returns a small ELF file: functions that call each other and load from
// tables of pointers, and these tables. With grown, functions were added here and
// there, and everything behind them moved.
func testProgram(machine byte, grown int) []byte {
	const (
		functions = 600
		textOff   = 0x1000
		base      = 0x400000
	)
	r := rand.New(rand.NewPCG(7, uint64(machine)))
	type ref struct{ at, to int } // in words of 4 bytes, and functions
	var text []byte
	starts := make([]int, functions)
	var calls, loads []ref
	for f := range functions {
		n := 8 + r.IntN(40)
		body := noise(uint64(f+1), n*16)
		for i := range body { // no opcodes by chance
			body[i] = body[i]&0x1F | 0x40
		}
		if grown > 0 && f%50 == 10 {
			text = append(text, noise(uint64(f+1), 16*grown*3)...)
		}
		starts[f] = len(text)
		for k := range n {
			to := r.IntN(functions)
			if k%2 == 0 {
				calls = append(calls, ref{len(text) + 16*k, to})
			} else {
				loads = append(loads, ref{len(text) + 16*k, to})
			}
		}
		text = append(text, body...)
	}
	dataOff := (textOff+len(text)+0xFFF)&^0xFFF + 0x1000*grown
	dataAddr := base + dataOff + 0x1000
	out := make([]byte, dataOff+8*functions)
	copy(out[textOff:], text)
	for _, c := range calls {
		at, to := textOff+c.at, textOff+starts[c.to]
		if machine == machineX86 {
			out[at] = 0xE8
			le.PutUint32(out[at+1:], uint32(to-at-5))
		} else {
			le.PutUint32(out[at:], 0x94000000|uint32((to-at)>>2)&0x3FFFFFF)
		}
	}
	for _, l := range loads {
		pc := base + textOff + l.at
		at, to := textOff+l.at, dataAddr+8*l.to
		if machine == machineX86 { // mov rax, [rip+x]
			copy(out[at:], "\x48\x8b\x05")
			le.PutUint32(out[at+3:], uint32(to-pc-7))
		} else { // adrp x3; ldr x3, [x3, lo12]
			v := to>>12 - pc>>12
			le.PutUint32(out[at:], 0x90000003|uint32(v&3)<<29|uint32(v>>2)&0x7FFFF<<5)
			le.PutUint32(out[at+8:], 0xF9400063|uint32(to&0xFFF)>>3<<10)
		}
	}
	for f := range functions {
		le.PutUint64(out[dataOff+8*f:], uint64(base+textOff+starts[f]))
	}
	head := []byte("\x7fELF\x02\x01\x01")
	copy(out, head)
	em := uint16(62)
	if machine == machineARM64 {
		em = 183
	}
	b := binary.LittleEndian.AppendUint16(nil, 3)
	b = le.AppendUint16(b, em)
	copy(out[16:], b)
	le.PutUint64(out[32:], 64)
	le.PutUint16(out[54:], 56)
	le.PutUint16(out[56:], 2)
	ph := func(i int, flags uint32, off, addr, size int) {
		p := out[64+56*i:]
		le.PutUint32(p, 1)
		le.PutUint32(p[4:], flags)
		for k, v := range []int{off, addr, addr, size, size + 64, 0x1000} {
			le.PutUint64(p[8+8*k:], uint64(v))
		}
	}
	ph(0, 5, textOff, base+textOff, len(text))
	ph(1, 6, dataOff, dataAddr, 8*functions)
	return out
}
