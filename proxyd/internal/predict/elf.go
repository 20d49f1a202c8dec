package predict

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Limits on what is read of one ELF file. debug/elf is not used because it
// wants section headers, which nobody needs at run time and which a hostile
// file can make gigabytes of.
const (
	maxProgs   = 512
	maxDynamic = 64 << 10 // bytes
	maxString  = 4 << 10  // bytes of a name in the dynamic string table
	maxNeeded  = 256      // libraries of one file
	maxLoaded  = 1024     // libraries of one program
	maxSymbols = 8 << 20  // bytes of the dynamic symbol table

	maxInterp = 4096
	// largeFile is the size, in bytes, from which a file comes in parts. What is missed
	// costs a round trip each time, so that there must be much to gain. Of a library
	// that only other libraries need, a start hardly ever runs anything.
	largeFile, largeDeepFile = 16 << 20, 4 << 20
	// largeTable is the size, in bytes, from which data is taken for a table in which few
	// places are looked up, as ICU's of all languages: a quarter of the bytes of Node.
	largeTable = 2 << 20
)

var errNotELF = errors.New("not an ELF file")

// binaryInfo is what the kernel and ld.so look at in an ELF file.
type binaryInfo struct {
	class           byte
	machine         elf.Machine
	interp          string
	needed          []string
	rpath, runpath  []string
	dynamicallyLoad bool
	// loading are the parts of the file that are touched before any of its code runs:
	// headers, symbols and relocations, data, and the entry.
	loading []span
	// tables are parts in which a program looks up little.
	tables []span
	// unloaded is what a run never reads: symbols and lines for debuggers.
	unloaded span
}

// span is bytes [from, to) of a file.
type span struct{ from, to uint64 }

func (s span) covers(o span) bool { return s.from <= o.from && o.to <= s.to }

type segment struct {
	typ, off, vaddr, filesz uint64
	flags                   elf.ProgFlag
}

// offset is where an address of a loaded file stands in it.
func offset(segments []segment, addr uint64) (off uint64, ok bool) {
	for _, s := range segments {
		if elf.ProgType(s.typ) == elf.PT_LOAD && addr >= s.vaddr && addr-s.vaddr < s.filesz {
			return s.off + (addr - s.vaddr), true
		}
	}
	return 0, false
}

// parseELF reads program headers and the dynamic section through readAt.
func parseELF(readAt func([]byte, int64) (int, error)) (*binaryInfo, error) {
	var hdr [64]byte
	if n, err := readAt(hdr[:], 0); n < 52 {
		return nil, errors.Join(errNotELF, err)
	}
	if string(hdr[:4]) != elf.ELFMAG {
		return nil, errNotELF
	}
	var order binary.ByteOrder = binary.LittleEndian
	if elf.Data(hdr[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	info := &binaryInfo{class: hdr[elf.EI_CLASS], machine: elf.Machine(order.Uint16(hdr[18:]))}
	segments, err := readSegments(readAt, hdr[:], order)
	if err != nil {
		return nil, err
	}
	info.loading = append(info.loading, span{0, 1})
	entry := uint64(order.Uint32(hdr[24:]))
	if elf.Class(info.class) == elf.ELFCLASS64 {
		entry = order.Uint64(hdr[24:])
	}
	info.touch(segments, entry)
	var end uint64
	for _, s := range segments {
		switch elf.ProgType(s.typ) {
		case elf.PT_LOAD:
			end = max(end, s.off+s.filesz)
			if s.flags&elf.PF_W != 0 {
				info.loading = append(info.loading, span{s.off, s.off + s.filesz})
			}
		case elf.PT_INTERP:
			b := make([]byte, min(s.filesz, maxInterp))
			n, _ := readAt(b, int64(s.off))
			info.interp, _, _ = strings.Cut(string(b[:n]), "\x00")
		case elf.PT_DYNAMIC:
			info.readDynamic(readAt, s, segments, order)
		}
	}
	// What stands behind the headers of the sections is no section: programs append
	// archives that they open as their own file.
	sections := uint64(order.Uint32(hdr[32:]))
	if elf.Class(info.class) == elf.ELFCLASS64 {
		sections = order.Uint64(hdr[40:])
	}
	if end > 0 && sections > end {
		info.unloaded = span{end, sections}
	}
	return info, nil
}

func readSegments(readAt func([]byte, int64) (int, error), hdr []byte, order binary.ByteOrder) ([]segment, error) {
	is64 := elf.Class(hdr[elf.EI_CLASS]) == elf.ELFCLASS64
	var off uint64
	var size, num, minSize int
	if is64 {
		off, size, num, minSize = order.Uint64(hdr[32:]), int(order.Uint16(hdr[54:])), int(order.Uint16(hdr[56:])), 56
	} else {
		off, size, num, minSize = uint64(order.Uint32(hdr[28:])), int(order.Uint16(hdr[42:])), int(order.Uint16(hdr[44:])), 32
	}
	if size < minSize || size > 256 {
		return nil, errNotELF
	}
	b := make([]byte, size*min(num, maxProgs))
	n, _ := readAt(b, int64(off))
	var segments []segment
	for b = b[:n]; len(b) >= size; b = b[size:] {
		s := segment{typ: uint64(order.Uint32(b))}
		if is64 {
			s.off, s.vaddr, s.filesz = order.Uint64(b[8:]), order.Uint64(b[16:]), order.Uint64(b[32:])
			s.flags = elf.ProgFlag(order.Uint32(b[4:]))
		} else {
			s.off, s.vaddr, s.filesz = uint64(order.Uint32(b[4:])), uint64(order.Uint32(b[8:])), uint64(order.Uint32(b[16:]))
			s.flags = elf.ProgFlag(order.Uint32(b[24:]))
		}
		segments = append(segments, s)
	}
	return segments, nil
}

func (info *binaryInfo) readDynamic(readAt func([]byte, int64) (int, error), dyn segment, segments []segment, order binary.ByteOrder) {
	b := make([]byte, min(dyn.filesz, maxDynamic))
	n, _ := readAt(b, int64(dyn.off))
	b = b[:n]
	info.dynamicallyLoad = true
	word := func(b []byte) uint64 { return uint64(order.Uint32(b)) }
	size := 4
	if elf.Class(info.class) == elf.ELFCLASS64 {
		word, size = order.Uint64, 8
	}
	type tag struct{ tag, val uint64 }
	var tags []tag
	var table, tableSize uint64
	all := map[elf.DynTag]uint64{} // the last of each
	for ; len(b) >= 2*size; b = b[2*size:] {
		t := tag{word(b), word(b[size:])}
		all[elf.DynTag(t.tag)] = t.val
		switch elf.DynTag(t.tag) {
		case elf.DT_NULL:
			b = nil
		case elf.DT_STRTAB:
			table = t.val
		case elf.DT_STRSZ:
			tableSize = t.val
		case elf.DT_NEEDED, elf.DT_RPATH, elf.DT_RUNPATH:
			if len(tags) < maxNeeded {
				tags = append(tags, t)
			}
		}
		if b == nil {
			break
		}
	}
	info.touch(segments, all[elf.DT_INIT])
	for address, length := range tables {
		if off, ok := offset(segments, all[address]); ok {
			info.loading = append(info.loading, span{off, off + max(all[length], 1)})
		}
	}
	if from, ok := offset(segments, all[elf.DT_SYMTAB]); ok && table > all[elf.DT_SYMTAB] {
		info.readSymbols(readAt, span{from, from + min(table-all[elf.DT_SYMTAB], maxSymbols)}, segments, order)
	}
	for _, t := range tags {
		s := readString(readAt, table, tableSize, t.val, segments)
		if s == "" {
			continue
		}
		switch elf.DynTag(t.tag) {
		case elf.DT_NEEDED:
			info.needed = append(info.needed, s)
		case elf.DT_RPATH:
			info.rpath = strings.Split(s, ":")
		case elf.DT_RUNPATH:
			info.runpath = strings.Split(s, ":")
		}
	}
}

// readSymbols finds the large tables of a file that has room for some. Linkers write the
// names right behind the symbols; nothing else says where these end.
func (info *binaryInfo) readSymbols(readAt func([]byte, int64) (int, error), at span, segments []segment, order binary.ByteOrder) {
	if !slices.ContainsFunc(segments, func(s segment) bool { return s.flags&(elf.PF_W|elf.PF_R) == elf.PF_R && s.filesz > largeTable }) {
		return
	}
	size, is64 := uint64(16), elf.Class(info.class) == elf.ELFCLASS64
	if is64 {
		size = 24
	}
	b := make([]byte, 2048*size)
	for ; at.from+size <= at.to; at.from += uint64(len(b)) {
		n, err := readAt(b[:min(uint64(len(b)), at.to-at.from)], int64(at.from))
		for s := b[:n]; uint64(len(s)) >= size; s = s[size:] {
			typ, value, length := s[12], uint64(order.Uint32(s[4:])), uint64(order.Uint32(s[8:]))
			if is64 {
				typ, value, length = s[4], order.Uint64(s[8:]), order.Uint64(s[16:])
			}
			off, ok := offset(segments, value)
			if ok && elf.ST_TYPE(typ) == elf.STT_OBJECT && length >= largeTable && len(info.tables) < maxNeeded {
				info.tables = append(info.tables, span{off, off + length})
			}
		}
		if err != nil {
			return
		}
	}
}

// tables of the dynamic section that ld.so goes through, and their sizes. Symbols and
// their names are looked up here and there.
var tables = map[elf.DynTag]elf.DynTag{
	elf.DT_HASH: elf.DT_NULL, elf.DT_GNU_HASH: elf.DT_NULL, elf.DT_SYMTAB: elf.DT_NULL, elf.DT_VERSYM: elf.DT_NULL,
	elf.DT_VERNEED: elf.DT_NULL, elf.DT_STRTAB: elf.DT_NULL, elf.DT_RELA: elf.DT_RELASZ, elf.DT_REL: elf.DT_RELSZ, //nolint:misspell // its name
	elf.DT_JMPREL: elf.DT_PLTRELSZ, dtRelr: dtRelrSize,
}

// Relative relocations in brief (gABI), which debug/elf does not know.
const dtRelrSize, dtRelr elf.DynTag = 35, 36

// touch notes an address that is used.
func (info *binaryInfo) touch(segments []segment, addr uint64) {
	if off, ok := offset(segments, addr); ok && addr != 0 {
		info.loading = append(info.loading, span{off, off + 1})
	}
}

// readString reads one string of the dynamic string table, which is named by
// address. The whole table can have megabytes, with the names of libraries at its end.
func readString(readAt func([]byte, int64) (int, error), table, size, at uint64, segments []segment) string {
	if at >= size {
		return ""
	}
	for _, s := range segments {
		if elf.ProgType(s.typ) != elf.PT_LOAD || table < s.vaddr || table-s.vaddr >= s.filesz {
			continue
		}
		left := s.filesz - (table - s.vaddr)
		if at >= left {
			return ""
		}
		b := make([]byte, min(size-at, left-at, maxString))
		n, _ := readAt(b, int64(s.off+(table-s.vaddr)+at))
		name, _, ended := strings.Cut(string(b[:n]), "\x00")
		if !ended {
			return ""
		}
		return name
	}
	return ""
}

// parse reads a node as an ELF file.
func (p *predictor) parse(n *node) (*binaryInfo, error) {
	return parseELF(func(b []byte, off int64) (int, error) { return p.readAt(n, b, off) })
}

// load adds an ELF program, its interpreter and its libraries, breadth first: of large
// files first what ld.so touches, as it looks into all of them before any runs.
func (p *predictor) load(n *node, info *binaryInfo) {
	code := p.addLoading(n, info, largeFile)
	if info.interp != "" {
		p.addAll(info.interp)
	}
	if !info.dynamicallyLoad {
		p.order = append(p.order, code...)
		return
	}
	p.addAll("/etc/ld.so.preload", "/etc/ld.so.cache")
	type item struct {
		n     *node
		info  *binaryInfo
		rpath []string // of the file and of those that loaded it
	}
	queue := []item{{n, info, nil}}
	known := make(map[string]bool)
	for len(queue) > 0 && len(known) < maxLoaded {
		it := queue[0]
		queue = queue[1:]
		rpath := it.rpath
		if it.info.runpath == nil {
			rpath = append(expand(it.info.rpath, it.n.path), rpath...)
		}
		dirs := p.searchDirs(rpath, expand(it.info.runpath, it.n.path), info.machine)
		for _, name := range it.info.needed {
			if known[name] {
				continue
			}
			known[name] = true
			lib := p.findLibrary(name, dirs, info.machine)
			if lib == nil {
				continue
			}
			li, err := p.parse(lib)
			if err != nil {
				p.add(lib)
				continue
			}
			large := int64(largeDeepFile)
			if it.n == n {
				large = largeFile
			}
			p.late = append(p.late, p.addLoading(lib, li, large)...)
			queue = append(queue, item{lib, li, slices.Clip(rpath)})
		}
	}
	p.order = append(p.order, code...)
}

// loadFile adds an ELF file that is loaded while a program runs, with its libraries.
func (p *predictor) loadFile(n *node) {
	if info, err := p.parse(n); err == nil {
		p.load(n, info)
	}
}

// addLoading adds an ELF file, or of a large one the pieces that loading it touches, and
// returns the others that hold code. Of any file it puts off what a run never reads, and
// tables in which it looks up little.
func (p *predictor) addLoading(n *node, info *binaryInfo, large int64) (code []Item) {
	if n.object < 0 || p.seen[n.object] {
		return nil
	}
	if n.size <= large && info.unloaded.to-info.unloaded.from < toc.PieceSize && len(info.tables) == 0 {
		p.add(n)
		return nil
	}
	pieces := (n.size + toc.PieceSize - 1) / toc.PieceSize
	touched, count := make([]bool, pieces), int64(0)
	for _, s := range info.loading {
		for i := s.from / toc.PieceSize; i < uint64(pieces) && i*toc.PieceSize < s.to; i++ {
			if !touched[i] {
				touched[i] = true
				count++
			}
		}
	}
	p.seen[n.object] = true
	whole := n.size <= large || count > pieces/2
	for i, t := range touched {
		list, piece := &code, span{uint64(i) * toc.PieceSize, min(uint64(i+1)*toc.PieceSize, uint64(n.size))}
		switch {
		case t:
			list = &p.order
		case info.unloaded.covers(piece):
			list = &p.unloaded
		case slices.ContainsFunc(info.tables, func(t span) bool { return t.covers(piece) }):
			list = &p.tables
		case whole:
			list = &p.order
		}
		if last := len(*list) - 1; last >= 0 && (*list)[last].Object == uint32(n.object) && (*list)[last].First+(*list)[last].Pieces == uint32(i) {
			(*list)[last].Pieces++
			continue
		}
		*list = append(*list, Item{Object: uint32(n.object), First: uint32(i), Pieces: 1})
	}
	return code
}

// expand replaces $ORIGIN in the directories of a file's search path.
func expand(dirs []string, file string) []string {
	origin := "/" + parentOf(file)
	out := make([]string, 0, len(dirs))
	for _, d := range dirs {
		if d != "" {
			out = append(out, strings.NewReplacer("${ORIGIN}", origin, "$ORIGIN", origin, "$LIB", "lib", "${LIB}", "lib").Replace(d))
		}
	}
	return out
}

var multiarch = map[elf.Machine]string{
	elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_386: "i386-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu",
	elf.EM_ARM: "arm-linux-gnueabihf", elf.EM_PPC64: "powerpc64le-linux-gnu", elf.EM_S390: "s390x-linux-gnu",
	elf.EM_RISCV: "riscv64-linux-gnu", elf.EM_LOONGARCH: "loongarch64-linux-gnu",
}

// searchDirs lists the directories in the order of ld.so.
func (p *predictor) searchDirs(rpath, runpath []string, m elf.Machine) []string {
	dirs := append([]string{}, rpath...)
	for d := range strings.SplitSeq(p.env["LD_LIBRARY_PATH"], ":") {
		if d != "" {
			dirs = append(dirs, d)
		}
	}
	dirs = append(dirs, runpath...)
	dirs = append(dirs, p.confDirs()...)
	if name := multiarch[m]; name != "" {
		dirs = append(dirs, "/lib/"+name, "/usr/lib/"+name)
	} else if m == 0 {
		for _, name := range []string{"x86_64-linux-gnu", "aarch64-linux-gnu"} {
			dirs = append(dirs, "/lib/"+name, "/usr/lib/"+name)
		}
	}
	return append(dirs, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
}

// findLibrary looks a needed library up; a library for another machine is passed over.
func (p *predictor) findLibrary(name string, dirs []string, m elf.Machine) *node {
	if strings.Contains(name, "/") {
		return p.view.file(name)
	}
	for _, dir := range dirs {
		n := p.view.file(path.Join(dir, name))
		if n == nil {
			continue
		}
		var hdr [20]byte
		if got, _ := p.readAt(n, hdr[:], 0); m != 0 && got == len(hdr) {
			order := binary.ByteOrder(binary.LittleEndian)
			if elf.Data(hdr[elf.EI_DATA]) == elf.ELFDATA2MSB {
				order = binary.BigEndian
			}
			if elf.Machine(order.Uint16(hdr[18:])) != m {
				continue
			}
		}
		return n
	}
	return nil
}

// confDirs reads /etc/ld.so.conf, or the path file of musl.
func (p *predictor) confDirs() []string {
	if p.libDirs != nil {
		return p.libDirs
	}
	p.libDirs = []string{}
	if etc := p.view.dir("/etc"); etc != nil {
		for _, name := range etc.children {
			if strings.HasPrefix(name, "ld-musl-") && strings.HasSuffix(name, ".path") {
				p.libDirs = append(p.libDirs, strings.FieldsFunc(string(p.script(p.view.file("/etc/"+name))), func(r rune) bool {
					return r == ':' || r == '\n'
				})...)
			}
		}
	}
	p.readConf("/etc/ld.so.conf", 0)
	return p.libDirs
}

func (p *predictor) readConf(name string, depth int) {
	if depth > 4 || len(p.libDirs) > 256 {
		return
	}
	for line := range strings.Lines(string(p.script(p.view.file(name)))) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		pattern, include := strings.CutPrefix(line, "include ")
		switch {
		case line == "" || len(p.libDirs) > 256:
		case !include:
			p.libDirs = append(p.libDirs, line)
		default:
			dir, base := path.Split(abs("/etc", strings.TrimSpace(pattern)))
			d := p.view.dir(dir)
			if d == nil {
				continue
			}
			for _, c := range d.children {
				if ok, err := path.Match(base, c); err == nil && ok {
					p.readConf(dir+c, depth+1)
				}
			}
		}
	}
}
