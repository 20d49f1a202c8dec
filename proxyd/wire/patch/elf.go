package patch

import (
	"cmp"
	"debug/elf"
	"io"
	"slices"
	"strings"
)

// program is what an encoder wants to know of an ELF file.
type program struct {
	machine    byte
	parts      []part
	eh, ehSize int64
	golang     bool
}

// readProgram reads the headers of an ELF file. It returns nil for every file that
// RD cannot handle, odd ones among them: those are patched as any other file. It
// reads by itself rather than with debug/elf, since files are not to be trusted, and
// little is needed.
func readProgram(r io.ReaderAt, size int64) (*program, error) {
	h := make([]byte, 64)
	if size < int64(len(h)) || size > maxOld {
		return nil, nil
	}
	if err := readFull(r, h, 0); err != nil {
		return nil, err
	}
	if string(h[:7]) != "\x7fELF\x02\x01\x01" {
		return nil, nil
	}
	p := &program{}
	switch elf.Machine(le.Uint16(h[18:])) {
	case elf.EM_X86_64:
		p.machine = machineX86
	case elf.EM_AARCH64:
		p.machine = machineARM64
	default:
		return nil, nil
	}
	const phentsize, shentsize = 56, 64
	ph, err := table(r, size, le.Uint64(h[32:]), int(le.Uint16(h[56:])), int(le.Uint16(h[54:])), phentsize)
	if err != nil {
		return nil, err
	}
	for ; len(ph) > 0; ph = ph[phentsize:] {
		off, addr := int64(le.Uint64(ph[8:])), int64(le.Uint64(ph[16:]))
		n, mem := int64(le.Uint64(ph[32:])), int64(le.Uint64(ph[40:]))
		if off < 0 || addr < 0 || n < 0 || mem < 0 || off > size || n > size-off || addr > maxAddr || mem > MaxSize {
			continue
		}
		switch elf.ProgType(le.Uint32(ph)) {
		case elf.PT_LOAD:
			code := elf.ProgFlag(le.Uint32(ph[4:]))&elf.PF_X != 0
			p.parts = append(p.parts, part{off: off, addr: addr, size: n, mem: max(n, mem), code: code})
		case elf.PT_GNU_EH_FRAME:
			p.eh, p.ehSize = addr, n
		}
	}
	slices.SortStableFunc(p.parts, func(a, b part) int { return cmp.Compare(a.off, b.off) })
	for i := 1; i < len(p.parts); i++ {
		if p.parts[i-1].off+p.parts[i-1].size > p.parts[i].off {
			return nil, nil
		}
	}
	if len(p.parts) == 0 || len(p.parts) > maxParts {
		return nil, nil
	}
	sh, err := table(r, size, le.Uint64(h[40:]), int(le.Uint16(h[60:])), int(le.Uint16(h[58:])), shentsize)
	if err != nil {
		return nil, err
	}
	p.golang, err = hasSection(r, size, sh, int(le.Uint16(h[62:])), ".go.buildinfo")
	return p, err
}

// table reads a table of headers, nil if there is none that makes sense.
func table(r io.ReaderAt, size int64, off uint64, count, entry, want int) ([]byte, error) {
	n := count * entry
	if entry != want || n == 0 || off > uint64(size) || uint64(n) > uint64(size)-off {
		return nil, nil
	}
	b := make([]byte, n) // at most 4 MiB
	return b, readFull(r, b, int64(off))
}

func hasSection(r io.ReaderAt, size int64, sh []byte, names int, name string) (bool, error) {
	if names*64 >= len(sh) {
		return false, nil
	}
	s := sh[names*64:]
	b, err := table(r, size, le.Uint64(s[24:]), 1, int(min(le.Uint64(s[32:]), 1<<20)), int(le.Uint64(s[32:])))
	if err != nil {
		return false, err
	}
	return strings.Contains(string(b), "\x00"+name+"\x00"), nil
}
