package weird

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Images lists them all. Layers name the directories that they change, as those of
// build tools do: else an unpack gives them the time of the unpack.
func Images() []Image {
	return []Image{
		{Name: "layers127", layers: manyLayers(127)},
		{Name: "whiteouts", layers: whiteouts()},
		{Name: "replacements", layers: replacements(), docker: true},
		{Name: "links", layers: links()},
		{Name: "metadata", layers: []func(*layer){metadata}},
		{Name: "names", layers: []func(*layer){names}, comp: func(int) compression { return zstandard }},
		{Name: "sparse", layers: []func(*layer){sparse}, comp: func(int) compression { return zstandard }},
		{Name: "big", layers: []func(*layer){big}, comp: func(int) compression { return plain }},
		{Name: "compressions", layers: manyLayers(9), comp: func(i int) compression { return compression(i % 3) }, shape: index},
		{Name: "plain-docker", layers: manyLayers(4), comp: func(i int) compression { return compression(i % 2 * int(plain)) }, docker: true, shape: index},
		{Name: "attested", layers: manyLayers(3), shape: attest},
		{Name: "nothing", layers: []func(*layer){(*layer).root, (*layer).root, func(*layer) {}, func(*layer) {}}},
		{Name: "repeats", layers: repeats()},
	}
}

// manyLayers changes a few files again and again: adds, replaces, removes, brings
// back, and does nothing in every fifth layer.
func manyLayers(n int) []func(*layer) {
	all := make([]func(*layer), n)
	for i := range all {
		all[i] = func(l *layer) {
			if i > 0 && i%5 == 0 {
				return
			}
			l.root()
			l.dir("d", mtime(epoch.Add(time.Duration(i)*time.Hour)))
			l.file("d/always", fmt.Sprintf("of layer %d", i))
			l.file(fmt.Sprintf("d/only-%d", i), strings.Repeat("x", i*100))
			l.file("d/same", "the same in every layer")
			if i > 1 && (i-1)%5 != 0 {
				l.gone("d/", fmt.Sprintf("only-%d", i-1))
			}
		}
	}
	return all
}

func whiteouts() []func(*layer) {
	return []func(*layer){
		func(l *layer) {
			l.root()
			for _, d := range []string{"kept", "emptied", "emptied-late", "removed", "removed/deep", "reborn", "nested", "nested/in"} {
				l.dir(d)
				l.file(d+"/a", "a of "+d)
				l.file(d+"/b", "b of "+d)
			}
			l.symlink("link", "kept/a")
			l.file("file", "to be removed")
		},
		func(l *layer) {
			l.root()
			l.dir("kept")
			l.gone("kept/", "a")
			l.gone("kept/", "never-was")
			l.dir("emptied")
			l.opaque("emptied/")
			l.file("emptied/c", "new")
			l.dir("emptied-late") // the mark may come after what it does not hide
			l.file("emptied-late/c", "new")
			l.opaque("emptied-late/")
			l.gone("", "removed")
			l.gone("", "file")
			l.gone("", "link")
			l.gone("", "reborn")
			l.dir("nested")
			l.dir("nested/in")
			l.opaque("nested/in/")
		},
		func(l *layer) {
			l.root()
			l.dir("reborn", mode(0o700))
			l.file("reborn/c", "only this")
			l.dir("emptied")
			l.file("emptied/a", "again")
			l.file("file", "back")
		},
	}
}

// replacements turn each kind of thing into each other kind, and back.
func replacements() []func(*layer) {
	kinds := []func(l *layer, name string){
		func(l *layer, n string) { l.file(n, "a file: "+n) },
		func(l *layer, n string) {
			l.dir(n)
			l.file(n+"/inside", "in "+n)
			l.dir(n + "/sub")
			l.file(n+"/sub/x", "x")
		},
		func(l *layer, n string) { l.symlink(n, "elsewhere") },
		func(l *layer, n string) { l.fifo(n) },
		func(l *layer, n string) { l.device(n, tar.TypeChar, 1, 3) },
	}
	step := func(which func(from, to int) int) func(*layer) {
		return func(l *layer) {
			l.root()
			for from := range kinds {
				for to := range kinds {
					kinds[which(from, to)](l, fmt.Sprintf("%d-to-%d", from, to))
				}
			}
		}
	}
	first := step(func(from, _ int) int { return from })
	then := step(func(_, to int) int { return to })
	withTarget := func(l *layer) {
		first(l)
		l.dir("elsewhere")
		l.file("elsewhere/untouched", "a symlink to here is replaced, never followed")
	}
	return []func(*layer){withTarget, then, first}
}

func links() []func(*layer) {
	return []func(*layer){
		func(l *layer) {
			l.root()
			l.dir("d")
			l.file("d/one", "three names")
			l.link("two", "d/one")
			l.link("d/three", "d/one")
			l.file("lower", "of the layer below")
			l.file("kept", "its other name is removed")
			l.link("dropped", "kept")
			l.symlink("sym", "d/one")
			l.file("empty1", "")
			l.link("empty2", "empty1")
		},
		func(l *layer) {
			l.root()
			l.dir("d")
			// A layer must bring the target itself: containerd unpacks it alone.
			l.file("lower", "linked from the layer above")
			l.link("upper", "lower")
			l.file("d/one", "one of the three names is replaced")
			l.gone("", "dropped")
			l.file("fresh", "of this layer")
			l.link("fresh-link", "fresh")
		},
	}
}

func metadata(l *layer) {
	l.root()
	l.dir("d", mode(0o1777), owner(0, 0))
	l.file("d/setuid", "#!/bin/sh\n", mode(0o4755))
	l.file("d/setgid", "#!/bin/sh\n", mode(0o2755), owner(0, 42))
	l.file("d/sticky", "s", mode(0o1644))
	l.file("d/nothing", "", mode(0))
	l.file("d/owner", "o", owner(123456789, 987654321))
	l.file("d/nobody", "n", owner(65534, 65534), mode(0o600))
	l.file("d/old", "before 1970", mtime(time.Unix(-86400, 0)))
	l.file("d/zero", "at 1970", mtime(time.Unix(0, 0)))
	l.file("d/nano", "fractions", mtime(time.Unix(1600000000, 123456789)))
	l.file("d/future", "after 2038", mtime(time.Unix(1<<32+5, 0)))
	l.file("d/user-xattr", "x", xattr("user.note", "value"), xattr("user.empty", ""))
	l.file("d/long-xattr", "x", xattr("user.long", strings.Repeat("v", 3000)))
	l.file("d/capability", "x", mode(0o755), xattr("security.capability", netBind()))
	l.file("d/acl", "x", xattr("system.posix_acl_access", acl(7)))
	l.dir("d/default-acl", xattr("system.posix_acl_default", acl(5)))
	l.dir("d/xattr-dir", xattr("user.on", "a directory"))
	l.device("d/null", tar.TypeChar, 1, 3, mode(0o666))
	l.device("d/disk", tar.TypeBlock, 259, 300000)
	l.fifo("d/fifo", owner(7, 8))
	l.symlink("d/sym-owner", "target", owner(11, 12), mtime(time.Unix(1500000000, 5000)))
}

// netBind is a file capability, CAP_NET_BIND_SERVICE, effective.
func netBind() string {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	b = binary.LittleEndian.AppendUint32(b, 1<<10)
	return string(append(b, make([]byte, 12)...))
}

// acl gives a user of its own rights to a file of mode 0644.
func acl(rights uint16) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, 1<<32 - 1}, {2, rights, 1000}, {4, 4, 1<<32 - 1}, {16, 4, 1<<32 - 1}, {32, 4, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

func names(l *layer) {
	l.root()
	l.dir("d")
	for _, n := range []string{
		"new\nline", "tab\t", "space ", " lead", "colon:comma,semi;", `back\slash`, `quo"te'`, "-rf", "--", "*?[x]", "$HOME", "%s", "#",
		"...", ".hidden", "wh.not", "trusted.overlay.opaque", "ünïcödé", "日本語", "emoji🚀", "\x01\x02\x7f", strings.Repeat("n", 255),
	} {
		l.file("d/"+n, "content of "+n)
	}
	// Names that are not UTF-8 cannot stand in PAX records; the tar package writes
	// them as GNU headers.
	l.gnu("d/\xff\xfe", "not UTF-8")
	l.gnu("d/latin-\xe9", "Latin-1")
	l.symlink("d/to-nowhere", strings.Repeat("y/", 2000)+"z")
	deep := "d"
	for i := range 60 {
		deep = path.Join(deep, fmt.Sprintf("level-%d", i))
		l.dir(deep)
	}
	l.file(deep+"/bottom", "deep down")
}

func (l *layer) gnu(name, content string) {
	if l.err != nil {
		return
	}
	h := &tar.Header{
		Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), ModTime: epoch, Format: tar.FormatGNU,
	}
	if l.err = l.tw.WriteHeader(h); l.err == nil {
		_, l.err = l.tw.Write([]byte(content))
	}
}

func sparse(l *layer) {
	l.root()
	const piece = toc.PieceSize
	l.sparse("holes", 3*piece+5, map[int64]string{0: "start", piece - 2: "over a piece's end", 3*piece + 1: "end!"}, 0, piece-2, 3*piece+1)
	l.sparse("all-hole", 2*piece, nil)
	// More than 4 GiB: what 32 bits cannot count.
	l.sparse("huge", 5<<30, map[int64]string{4<<30 + 7: "beyond 4 GiB"}, 4<<30+7)
	l.file("zeros", strings.Repeat("\x00", 100000))
}

// big has files around the sizes at which objects are cut into pieces.
func big(l *layer) {
	l.root()
	const piece = toc.PieceSize
	for _, n := range []int{1, 4095, 4096, 4097, piece - 1, piece, piece + 1, 3 * piece, 3*piece + 17, 13*piece + 5} {
		b := make([]byte, n)
		x := uint32(n)
		for i := range b {
			x = x*1664525 + 1013904223
			b[i] = byte(x >> 24)
		}
		l.file(fmt.Sprintf("random-%d", n), string(b))
		l.file(fmt.Sprintf("text-%d", n), strings.Repeat("compress me ", n/12+1)[:n])
	}
	l.file("twice", strings.Repeat("T", 2*piece))
	l.file("twice-again", strings.Repeat("T", 2*piece))
}

// repeats has the same layer twice, and one path twice in a layer.
func repeats() []func(*layer) {
	a := func(l *layer) {
		l.root()
		l.dir("d")
		l.file("d/f", "first")
		l.file("d/f", "second: the last entry of a name counts")
		l.file("./d/../d/g", "a path that must be cleaned")
		l.file("/d/h", "a path that starts with a slash")
	}
	b := func(l *layer) {
		l.root()
		l.dir("d")
		l.gone("d/", "f")
	}
	return []func(*layer){a, b, a}
}
