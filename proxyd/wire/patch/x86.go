package patch

// What the byte before a field of 4 bytes can be.
const (
	isBranch = 1 + iota // call, jmp
	isJcc
	isModRM
)

var x86Before = func() (t [256]byte) {
	t[0xE8], t[0xE9] = isBranch, isBranch
	for i := range 16 {
		t[0x80+i] = isJcc
	}
	for i := range 8 {
		t[5+8*i] = isModRM
	}
	return
}()

// ripOpcode are the opcodes of one byte whose operand is commonly RIP-relative.
var ripOpcode = func() (t [256]bool) {
	for _, c := range []byte{
		0x01, 0x03, 0x09, 0x0B, 0x23, 0x29, 0x2B, 0x33, 0x38, 0x39, 0x3A, 0x3B, // arithmetic, cmp
		0x63, 0x80, 0x81, 0x83, 0x84, 0x85, 0x87, // movsxd, immediate arithmetic, test, xchg
		0x88, 0x89, 0x8A, 0x8B, 0x8D, // mov, lea
		0xB0, 0xB1, 0xC0, 0xC1, 0xC6, 0xC7, 0xF6, 0xF7, 0xFF, // behind 0F or LOCK; shifts, mov, groups
	} {
		t[c] = true
	}
	return
}()

// x86 rewrites code; b stood at address from and moved by move.
func (r *relocator) x86(b []byte, from, move int64) {
	for i := 1; i+4 <= len(b); i++ {
		switch c := b[i-1]; x86Before[c] {
		case 0:
			continue
		case isJcc:
			if r.flags&flagJcc == 0 || i < 2 || b[i-2] != 0x0F {
				continue
			}
		case isModRM:
			if i < 2 || !ripOpcode[b[i-2]] && (i < 3 || b[i-3]&0xF0 != 0x40 && b[i-3] != 0x0F) {
				continue
			}
		}
		v := int64(int32(le.Uint32(b[i:])))
		d, ok := r.target(from + int64(i) + 4 + v)
		if !ok {
			continue
		}
		if d != move {
			le.PutUint32(b[i:], uint32(v+d-move))
		}
		i += 4
	}
}
