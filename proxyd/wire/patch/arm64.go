package patch

const pageUsers = 8 // words behind an ADRP that are looked at for its users

// arm64 rewrites code; b stood at address from and moved by move.
func (r *relocator) arm64(b []byte, from, move int64) {
	for i := int(-from & 3); i+4 <= len(b); i += 4 {
		w := le.Uint32(b[i:])
		pc := from + int64(i)
		switch {
		case w&0x7C000000 == 0x14000000: // B, BL
			v := int64(int32(w<<6)>>6) << 2
			if d, ok := r.target(pc + v); ok && d != move {
				le.PutUint32(b[i:], w&0xFC000000|uint32((v+d-move)>>2)&0x03FFFFFF)
			}
		case w&0x9F000000 == 0x90000000: // ADRP
			v := int64(int32(w<<8)>>13)<<2 | int64(w>>29&3)
			if page, ok := r.users(b[i+4:], w&31, pc&^0xFFF+v<<12); ok {
				v = page>>12 - (pc+move)>>12
				le.PutUint32(b[i:], w&0x9F00001F|uint32(v&3)<<29|uint32(v>>2)&0x7FFFF<<5)
			}
		}
	}
}

// users rewrites the low bits of the address at page, wherever it is completed
// with the register reg, and returns its new page.
func (r *relocator) users(b []byte, reg uint32, page int64) (moved int64, ok bool) {
	for i := 0; i+4 <= len(b) && i < 4*pageUsers; i += 4 {
		w := le.Uint32(b[i:])
		if w&0x9F00001F == 0x90000000|reg { // another ADRP
			break
		}
		add := w&0xFF800000 == 0x91000000
		access := w&0x3B000000 == 0x39000000
		if !add && !access {
			continue
		}
		if w>>5&31 == reg {
			scale := uint(0)
			if access {
				scale = uint(w >> 30)
				if w&0x04800000 == 0x04800000 { // 16 bytes
					scale += 4
				}
			}
			t := page + int64(w>>10&0xFFF)<<scale
			if d, hit := r.target(t); hit {
				t += d
				if !ok {
					moved, ok = t, true
				}
				le.PutUint32(b[i:], w&^(0xFFF<<10)|uint32(t&0xFFF)>>scale<<10)
			}
		}
		load := access && w&0x04000000 == 0 && w&0x00C00000 != 0
		if w&31 == reg && (add || load) {
			return moved, ok
		}
	}
	if !ok {
		if d, hit := r.target(page); hit {
			return page + d, true
		}
	}
	return moved, ok
}
