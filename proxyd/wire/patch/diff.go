package patch

// op says: take copy bytes from offset old of the old file, then lit new ones.
type op struct {
	old       int64
	copy, lit int
}

const (
	certain = 24   // bytes in a row that show an alignment to be right
	glance  = 32   // bytes that are looked at when it may be right although bytes differ
	gain    = 8    // bytes by which another alignment must be better
	giveUp  = 4096 // bytes that an extension may be worse than at its best

	// groupSize is how many bytes of the new file, pieces of it, get ops together: where
	// bytes differ, a better alignment further on shows which of them were changed. Segments
	// wait for their group, and its ops keep the limits of one.
	groupSize = 4 * PieceSize
)

// differ finds the ops that make groups of pieces of the new file from the old one. Both
// are thought of as laid side by side; an alignment is the distance between them.
type differ struct {
	old   *window
	index *index
	lazy  int // of glance bytes, how many must be equal to keep the alignment

	align int64 // of the last bytes of the group before
	base  int64 // offset of the group
	nw    []byte
	ops   []op
	jumps jumps
}

// group sets ops to those for the group nw at offset base.
func (d *differ) group(base int64, nw []byte) error {
	d.base, d.nw, d.ops, d.jumps = base, nw, d.ops[:0], jumps{}
	if p := base + d.align; p < 0 || p > d.old.size {
		d.align = 0
	}
	last, scan, misses := 0, 0, 0
	for scan < len(nw) {
		at := base + int64(scan)
		if k := d.follow(at+d.align, nw[scan:]); k > 0 {
			scan += k
			misses = 0
			continue
		}
		if scan+anchor > len(nw) || d.full() {
			break
		}
		if p := d.index.find(nw[scan:]); p >= 0 {
			if n := d.old.match(p, nw[scan:]); n >= anchor {
				same := d.old.equal(at+d.align, nw[scan:scan+n])
				if n > same+gain {
					last = d.turn(last, scan, p-at)
				}
				misses = 0
				if n > same+gain || n == same {
					scan += n
					continue
				}
			}
		}
		misses++
		scan += 1 + min(misses>>14, 6)
	}
	d.end(last)
	return d.old.err
}

// follow returns for how many bytes of b the old file at o seems to be right.
func (d *differ) follow(o int64, b []byte) int {
	k := d.old.match(o, b)
	if k >= certain || k == len(b) {
		return k
	}
	if d.lazy > 0 && o >= 0 && o+glance <= d.old.size && len(b) >= glance {
		if s := d.old.from(o); len(s) >= glance {
			n := equal8(s, b) + equal8(s[8:], b[8:]) + equal8(s[16:], b[16:]) + equal8(s[24:], b[24:])
			if n >= d.lazy {
				return glance
			}
		}
	}
	return 0
}

// full tells whether no op may be added but the last.
func (d *differ) full() bool {
	return len(d.ops) >= MaxOps-2 || d.old.reloc != nil && d.jumps.n >= maxJumps-2*groupSize/relocBlock
}

// turn settles nw[last:scan] between the present alignment and the next one, which
// is right from scan on, and returns from where on the next one holds.
func (d *differ) turn(last, scan int, next int64) int {
	fwd := d.forward(last, scan)
	back := d.backward(last, scan, next)
	if over := fwd + back - (scan - last); over > 0 {
		keep := d.split(scan-back, over, next)
		fwd += keep - over
		back -= keep
	}
	d.add(last, fwd, scan-back)
	d.align = next
	return scan - back
}

// end settles the rest of the group.
func (d *differ) end(last int) {
	if last < len(d.nw) {
		d.add(last, d.forward(last, len(d.nw)), len(d.nw))
	}
}

func (d *differ) add(last, fwd, lit int) {
	if lit == last {
		return
	}
	o := d.base + int64(last) + d.align
	if fwd == 0 {
		o = min(max(0, o), d.old.size) // nothing is copied from there
	}
	d.jumps.add(o, fwd)
	d.ops = append(d.ops, op{old: o, copy: fwd, lit: lit - last - fwd})
}

// forward returns how much of nw[last:scan] the present alignment should
// make: up to where most bytes are equal.
func (d *differ) forward(last, scan int) int {
	o := d.base + int64(last) + d.align
	if o < 0 {
		return 0
	}
	score, best, length := 0, 0, 0 // score: equal less different bytes
	for i := 0; last+i < scan && o+int64(i) < d.old.size; {
		if k := d.old.match(o+int64(i), d.nw[last+i:scan]); k > 0 {
			i += k
			score += k
			if score > best {
				best, length = score, i
			}
			continue
		}
		i++
		score--
		if score < best-giveUp || d.old.err != nil {
			break
		}
	}
	return length
}

// backward returns how much of the end of nw[last:scan] the alignment next should make.
func (d *differ) backward(last, scan int, next int64) int {
	score, best, length := 0, 0, 0
	for i := 0; ; {
		o := d.base + int64(scan-i) + next
		if scan-i <= last || o <= 0 {
			return length
		}
		s, b := d.old.before(o), d.nw[last:scan-i]
		n := min(len(s), len(b))
		if n == 0 {
			return length
		}
		s, b = s[len(s)-n:], b[len(b)-n:]
		for k := n - 1; k >= 0; k-- {
			i++
			if s[k] == b[k] {
				if score++; score > best {
					best, length = score, i
				}
			} else if score--; score < best-giveUp {
				return length
			}
		}
	}
}

// split returns how many of the n bytes from nw[from] on, which both alignments
// could make, the present one should: those before the best place to change.
func (d *differ) split(from, n int, next int64) int {
	score, best, keep := 0, 0, 0
	at := d.base + int64(from)
	for i := 0; i < n; {
		a := d.old.from(at + int64(i) + d.align)
		b := d.old.from(at + int64(i) + next)
		k := min(len(a), len(b), n-i)
		if k == 0 {
			break
		}
		for j, c := range d.nw[from+i : from+i+k] {
			if a[j] == c {
				score++
			}
			if b[j] == c {
				score--
			}
			if score > best {
				best, keep = score, i+j+1
			}
		}
		i += k
	}
	return keep
}
