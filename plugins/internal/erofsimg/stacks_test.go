package erofsimg

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/plugins/internal/erofsimg/erofsimgtest"
)

// Short names for the table.
type layer = erofsimgtest.Layer

var (
	block    = erofsimgtest.Block
	char     = erofsimgtest.Char
	dir      = erofsimgtest.Dir
	fifo     = erofsimgtest.Fifo
	file     = erofsimgtest.File
	link     = erofsimgtest.Link
	opaque   = erofsimgtest.Opaque
	symlink  = erofsimgtest.Symlink
	whiteout = erofsimgtest.Whiteout
)

// aclOf encodes a POSIX ACL from entries of tag, permissions and ID.
func aclOf(entries ...[3]uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

const (
	access    = "system.posix_acl_access"
	dfault    = "system.posix_acl_default"
	none      = 1<<32 - 1
	capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	capUserNS = "\x01\x00\x00\x03\x00\x20\x00\x00\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xe8\x03\x00\x00"
)

var (
	aclUser1000 = aclOf([3]uint32{1, 7, none}, [3]uint32{2, 6, 1000}, [3]uint32{4, 5, none}, [3]uint32{16, 7, none}, [3]uint32{32, 4, none})
	aclGroups   = aclOf([3]uint32{1, 6, 9}, [3]uint32{4, 4, 9}, [3]uint32{8, 6, 5}, [3]uint32{8, 1, 4}, [3]uint32{16, 4, 9}, [3]uint32{32, 0, 9})
	aclMinimal  = aclOf([3]uint32{1, 7, none}, [3]uint32{4, 5, none}, [3]uint32{32, 0, none})
)

type stack struct {
	name   string
	layers []layer
	fails  bool // containerd does not unpack it
}

// stacks are images, lowest layer first, whose unpacking is not obvious.
var stacks = []stack{
	{name: "no layers' worth", layers: []layer{{}}},
	{name: "empty layers", layers: []layer{{}, {file("a", "a")}, {}, {}}},
	{name: "root entry", layers: []layer{{dir(".").Mode(0o700).Owner(5, 6)}, {dir("./").Mode(0o711), file("./a", "a")}}},
	{name: "names of objects", layers: []layer{{
		dir("ff"), file("ff/f", "x"), file("aa", "a"), symlink("bb", "aa"), dir("00/sub"), file("fg", "x"), file("d/ff", "y"), dir("e/00"),
	}}},
	{name: "types", layers: []layer{{
		dir("d").Mode(0o1777), file("d/f", "content"), file("d/empty", ""), symlink("d/s", "f"), link("d/h", "d/f"),
		char("d/null", 1, 3), block("d/loop", 7, 300), fifo("d/p"), char("d/big", 500, 700000), char("d/overflow", 4095, 1<<20-1),
	}}},
	{name: "modes and owners", layers: []layer{{
		file("suid", "x").Mode(0o4755), file("sgid", "x").Mode(0o2755), dir("sticky").Mode(0o1777), dir("sgdir").Mode(0o2775).Owner(1, 77),
		file("none", "x").Mode(0), file("all", "x").Mode(0o7777), file("owner", "x").Owner(70000, 80000), file("sgdir/f", "x"),
		file("sgdir/implicit/f", "x"), symlink("l", "x").Owner(3, 4).Mode(0o600), file("nobody", "").Owner(1<<32-2, 1<<32-2),
	}}},
	{name: "owner -1", layers: []layer{{
		dir("d").Mode(0o2755).Owner(8, 9), file("d/f", "x").Owner(1<<32-1, 1<<32-1), file("f", "x").Owner(4, 5), link("h", "f").Owner(1<<32-1, 6),
	}}},
	{name: "times", layers: []layer{{
		file("ns", "x").Time(1, 1), file("zero", "x").Time(0, 0), file("negative", "x").Time(-1, 0), file("negative-ns", "x").Time(-5, 999999999),
		file("2100", "x").Time(4102444800, 0), file("2261", "x").Time(9223372036, 854775807), file("late", "x").Time(9223372037, 0),
		dir("d").Time(5, 5), file("d/f", "x").Time(1<<33, 7), symlink("s", "t").Time(77, 8), fifo("p").Time(3, 2),
	}}},
	{name: "names", layers: []layer{{
		file("new\nline", "x"), file("not-utf8-\xff\xfe", "x"), file(strings.Repeat("n", 255), "x"), file("a:b,c\\d", "x"), dir(" "), file(" /!", "x"),
		file("\x01", "x"), file("+", "x"), file("...", "x"), file(".a", "x"), file("-", "x"), file("..a", "x"), symlink("l\xff", "t\xfe\n"),
	}}},
	{name: "name too long", fails: true, layers: []layer{{file(strings.Repeat("n", 256), "x")}}},
	{name: "long path", layers: []layer{{file(strings.Repeat("dddddddddddddd/", 200)+"f", "x")}}},
	{name: "long symlink", layers: []layer{{symlink("l", strings.Repeat("x", 4000))}}},
	{name: "unclean names", layers: []layer{{file("./a//b/./c", "x"), file("/abs", "x"), file("../up", "x"), file("a/../d", "x"), link("h", "./a/b/../b/c")}}},

	{name: "merged directory", layers: []layer{
		{dir("d").Mode(0o700).Owner(1, 1).Time(5, 5).Xattr("user.low", "1"), file("d/a", "low"), file("d/b", "low")},
		{dir("d").Mode(0o755).Owner(2, 2).Time(6, 6).Xattr("user.up", "2"), file("d/b", "up"), file("d/c", "up")},
	}},
	{name: "implicit parents", layers: []layer{
		{dir("d").Mode(0o2710).Owner(3, 4).Xattr("user.x", "y").Xattr(access, aclUser1000), dir("d/e").Mode(0o1711).Owner(5, 6)},
		{file("d/e/f", "x"), file("new/dir/f", "x")},
		{file("d/e/g", "x")},
	}},
	{name: "implicit parent of a whiteout keeps times", layers: []layer{
		{dir("d").Mode(0o710).Time(5, 6), dir("d/e").Time(7, 8), file("d/e/f", "x")}, {opaque("d/e")},
	}},
	{name: "implicit parent, attributes skip a layer", layers: []layer{{dir("d").Mode(0o700).Owner(7, 7)}, {file("x", "x")}, {file("d/f", "x")}}},
	{name: "implicit parent over whiteout", layers: []layer{{dir("d").Mode(0o700).Owner(7, 7), file("d/old", "x")}, {whiteout("d")}, {file("d/f", "x")}}},
	{name: "implicit parent below whiteout", fails: true, layers: []layer{{dir("d/e").Mode(0o700)}, {whiteout("d")}, {file("d/e/f", "x")}}},
	{name: "implicit parent over opaque", layers: []layer{{dir("d"), dir("d/e").Mode(0o700), file("d/e/x", "x")}, {opaque("d")}, {file("d/e/f", "x")}}},
	{name: "implicit parent is a file below", layers: []layer{{file("d", "file")}, {file("d/f", "x")}}},
	{name: "implicit parent is a symlink below", layers: []layer{{dir("real").Mode(0o711).Owner(1, 2), file("real/x", "x"), symlink("d", "real")}, {file("d/f", "x")}}},
	{name: "implicit parent is an absolute symlink below", layers: []layer{{dir("real").Mode(0o711), symlink("d", "/real")}, {file("d/e/f", "x")}}},
	{name: "implicit parent is a dangling symlink below", layers: []layer{{symlink("d", "nowhere")}, {file("d/f", "x")}}},
	{name: "implicit parent below a looping symlink", fails: true, layers: []layer{{symlink("d", "d2"), symlink("d2", "d")}, {file("d/f", "x")}}},

	{name: "file over file", layers: []layer{{file("f", "low").Mode(0o600).Xattr("user.x", "y")}, {file("f", "up")}}},
	{name: "file over directory", layers: []layer{{dir("d"), file("d/f", "x")}, {file("d", "file")}}},
	{name: "directory over file", layers: []layer{{file("d", "file")}, {dir("d"), file("d/f", "x")}}},
	{name: "directory over symlink", layers: []layer{{dir("t"), file("t/x", "x"), symlink("d", "t")}, {dir("d"), file("d/f", "x")}}},
	{name: "symlink over directory", layers: []layer{{dir("d"), file("d/f", "x")}, {symlink("d", "t")}}},
	{name: "file hides, directory again", layers: []layer{{dir("d"), file("d/low", "x")}, {file("d", "file")}, {dir("d"), file("d/up", "x")}}},
	{name: "device over all", layers: []layer{{file("a", "x"), dir("b"), fifo("c")}, {char("a", 1, 5), char("b", 1, 5), block("c", 1, 5)}}},

	{name: "whiteout", layers: []layer{{file("a", "x"), dir("d"), file("d/f", "x"), symlink("s", "a")}, {whiteout("a"), whiteout("d"), whiteout("s")}}},
	{name: "whiteout of nothing", layers: []layer{{file("a", "x")}, {whiteout("b"), dir("n"), whiteout("n/x"), whiteout("m/x")}}},
	{name: "whiteout in the lowest layer", layers: []layer{{file("a", "x"), whiteout("a"), whiteout("b"), file("c", "x")}}},
	{name: "whiteout in the lowest layer of a directory", fails: true, layers: []layer{{dir("d"), file("d/f", "x"), whiteout("d")}}},
	{name: "whiteout in the lowest layer of an implicit directory", layers: []layer{{file("d/f", "x"), whiteout("d")}}},
	{name: "whiteout in the lowest layer of a hard link", layers: []layer{{file("a", "x"), link("b", "a"), link("c", "a"), whiteout("b")}}},
	{name: "whiteout, then file", layers: []layer{{file("a", "low")}, {whiteout("a"), file("a", "up")}}},
	{name: "whiteout, then directory", layers: []layer{{dir("d"), file("d/f", "low")}, {whiteout("d"), dir("d"), file("d/g", "up")}}},
	{name: "whiteout, then below it", fails: true, layers: []layer{{dir("d"), file("d/f", "low")}, {whiteout("d"), file("d/g", "up")}}},
	{name: "file, then whiteout", fails: true, layers: []layer{{file("a", "low")}, {file("a", "up"), whiteout("a")}}},
	{name: "whiteout twice", fails: true, layers: []layer{{file("a", "x")}, {whiteout("a"), whiteout("a")}}},
	{name: "whiteout, re-created above", layers: []layer{{dir("d"), file("d/f", "low")}, {whiteout("d")}, {dir("d"), file("d/g", "up")}}},
	{name: "whiteout of any type", layers: []layer{{file("a", "x"), file("b", "x"), file("c", "x")}, {
		dir(".wh.a"), symlink(".wh.b", "x"), file(".wh.c", "with content"), link(".wh.d", "nowhere"),
	}}},
	{name: "whiteout below a file", fails: true, layers: []layer{{file("a", "x")}, {file("a", "x"), whiteout("a/b")}}},
	{name: "whiteout through a symlink", layers: []layer{{dir("d"), file("d/f", "x")}, {dir("d"), symlink("l", "d"), whiteout("l/f")}}},
	{name: "hard link to a whiteout", layers: []layer{{file("a", "x"), file("b", "x")}, {whiteout("a"), link("b", "a")}}},
	{name: "whiteout owner", layers: []layer{{file("a", "x")}, {whiteout("a").Owner(1, 2), link("c", "a")}}},
	{name: "whiteout without a name", fails: true, layers: []layer{{}, {file(".wh.", "")}}},
	{name: "whiteout of dot", fails: true, layers: []layer{{}, {file("d/.wh..", "")}}},
	{name: "whiteout of dot dot", fails: true, layers: []layer{{file("d/.wh...", "")}}},
	{name: "aufs metadata", layers: []layer{{dir(".wh..wh.plnk"), file(".wh..wh.aufs", "")}, {dir(".wh..wh.plnk"), file(".wh..wh.orph/x", ""), file(".wh..wh.aufs", "")}}},
	{name: "aufs links", layers: []layer{{dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), link("a", ".wh..wh.plnk/1.2")}}},

	{name: "opaque", layers: []layer{{dir("d"), file("d/a", "low"), dir("d/e"), file("d/e/f", "low")}, {dir("d"), opaque("d"), file("d/b", "up")}}},
	{name: "opaque last", layers: []layer{{dir("d"), file("d/a", "low")}, {dir("d"), file("d/b", "up"), opaque("d")}}},
	{name: "opaque first", layers: []layer{{dir("d"), file("d/a", "low")}, {opaque("d"), dir("d"), file("d/b", "up")}}},
	{name: "opaque twice", layers: []layer{{dir("d"), file("d/a", "low")}, {opaque("d"), opaque("d"), file("d/b", "up")}}},
	{name: "opaque root", layers: []layer{{dir("d"), file("d/a", "low"), file("f", "low")}, {opaque("."), file("d/b", "up")}}},
	{name: "opaque, merged above", layers: []layer{{dir("d"), file("d/a", "1")}, {opaque("d"), file("d/b", "2")}, {file("d/c", "3")}, {dir("d").Mode(0o700)}}},
	{name: "opaque lost with the directory", layers: []layer{{dir("d"), file("d/a", "low")}, {opaque("d"), file("d", "x"), dir("d"), file("d/b", "x")}}},
	{name: "opaque below a file", fails: true, layers: []layer{{}, {file("d", "x"), opaque("d")}}},
	{name: "opaque of a new directory", layers: []layer{{file("a", "x")}, {opaque("new")}}},
	{name: "opaque in the lowest layer", layers: []layer{{dir("d"), file("d/a", "x"), file("d/implicit/b", "x"), dir("d/e"), file("d/e/f", "x"), opaque("d"), file("d/c", "x")}}},
	{name: "opaque in the lowest layer, again", layers: []layer{{dir("d"), opaque("d"), file("d/i/b", "x"), opaque("d"), file("r/i/b", "x"), opaque(".")}}},
	{name: "opaque in the lowest layer, replaced", layers: []layer{{file("d/a", "x"), whiteout("d/a"), file("d/a/b", "x"), opaque("d")}}},
	{name: "opaque directory over opaque", layers: []layer{{dir("d/e"), file("d/e/1", "1")}, {opaque("d/e"), file("d/e/2", "2")}, {opaque("d"), file("d/e/3", "3")}, {file("d/e/4", "4")}}},

	{name: "hard links", layers: []layer{{file("a", "x"), link("b", "a"), dir("d"), link("d/c", "b"), link("e", "/d/c")}}},
	{name: "hard link attributes win", layers: []layer{{
		file("a", "x").Mode(0o4755).Owner(1, 1).Xattr("security.capability", capNetRaw).Xattr("user.a", "1"),
		link("b", "a").Mode(0o600).Owner(2, 2).Time(9, 9).Xattr("user.b", "2"),
	}}},
	{name: "hard link keeps a capability it lists", layers: []layer{{file("a", "x").Xattr("security.capability", capNetRaw), link("b", "a").Xattr("security.capability", capNetRaw)}}},
	{name: "hard link to a symlink", layers: []layer{{file("t", "x"), symlink("s", "t"), link("h", "s").Owner(3, 3)}}},
	{name: "hard link to devices", layers: []layer{{fifo("p"), link("p2", "p"), char("c", 1, 3), link("c2", "c").Mode(0o666)}}},
	{name: "hard link to an empty file", layers: []layer{{file("a", ""), link("b", "a")}}},
	{name: "hard link to a missing target", fails: true, layers: []layer{{link("b", "a")}}},
	{name: "hard link to a later target", fails: true, layers: []layer{{link("b", "a"), file("a", "x")}}},
	{name: "hard link to a lower layer", fails: true, layers: []layer{{file("a", "x")}, {link("b", "a")}}},
	{name: "hard link to a directory", fails: true, layers: []layer{{dir("a"), link("b", "a")}}},
	{name: "hard link to the root", fails: true, layers: []layer{{link("b", "/")}}},
	{name: "hard link to itself", fails: true, layers: []layer{{file("a", "x"), link("a", "a")}}},
	{name: "hard link through a symlink", layers: []layer{{dir("d"), file("d/f", "x"), symlink("l", "d"), link("h", "l/f")}}},
	{name: "hard link over its name", layers: []layer{{file("a", "x"), file("b", "y"), link("b", "a"), link("b", "a")}}},
	{name: "hard link over a directory", layers: []layer{{file("a", "x"), file("d/f", "y"), link("d", "a")}}},
	{name: "hard link into the directory it replaces", fails: true, layers: []layer{{file("d/f", "y"), link("d", "d/f")}}},
	{name: "hard link, target replaced", layers: []layer{{file("a", "x"), link("b", "a"), file("a", "y")}}},
	{name: "hard link hidden above", layers: []layer{{file("a", "x"), link("b", "a"), link("c", "a")}, {whiteout("b")}, {file("c", "new")}}},
	{name: "hard links in two layers", layers: []layer{{file("a", "x"), link("b", "a")}, {file("a", "y"), link("c", "a")}}},

	{name: "repeated names", layers: []layer{{
		file("f", "1"), file("f", "2").Mode(0o600), dir("d").Mode(0o700).Xattr("user.a", "1"), file("d/f", "x"), dir("d").Mode(0o711).Xattr("user.b", "2"),
		symlink("s", "1"), symlink("s", "2"), file("x", "x"), dir("x"), file("x/y", "x"), dir("z"), file("w", "x"), symlink("w", "x"),
	}}},
	{name: "directory replaced by a file", layers: []layer{{dir("d").Time(5, 5), file("d", "x").Time(6, 6)}}},
	{name: "directory replaced by a symlink", layers: []layer{{dir("t").Time(3, 3), file("t/f", "x"), dir("d").Time(5, 5), symlink("d", "t").Time(6, 6)}}},
	{name: "directory replaced by a dangling symlink", fails: true, layers: []layer{{dir("d"), symlink("d", "t")}}},
	{name: "parent of a directory replaced", fails: true, layers: []layer{{dir("d/e"), file("d", "x")}}},
	{name: "parent of a directory replaced and made again", layers: []layer{{dir("d/e").Time(4, 4), file("d", "x"), dir("d"), dir("d/e").Time(5, 5)}}},
	{name: "entry below a file", fails: true, layers: []layer{{file("a", "x"), file("a/b", "x")}}},
	{name: "entry deep below a file", fails: true, layers: []layer{{file("a", "x"), file("a/b/c", "x")}}},
	{name: "entry below a device", fails: true, layers: []layer{{char("a", 1, 3), file("a/b", "x")}}},

	{name: "symlinked parents", layers: []layer{{
		dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/f", "x"), symlink("abs", "/usr"), file("abs/lib/g", "x"), symlink("up", "../../usr"), file("up/h", "x"),
		symlink("chain", "abs/lib"), file("chain/i", "x"), dir("chain/dir").Time(5, 5), symlink("usr/back", "../usr/lib"), file("usr/back/j", "x"),
	}}},
	{name: "symlinked parent dangling", layers: []layer{{symlink("l", "/no/where"), file("l/f", "x"), symlink("m", "nope"), dir("m/d")}}},
	{name: "symlinked parent loops", fails: true, layers: []layer{{symlink("l", "m"), symlink("m", "l"), file("l/f", "x")}}},
	{name: "symlinked parent to itself", fails: true, layers: []layer{{symlink("l", "l"), file("l/f", "x")}}},
	{name: "symlinked parent to a file", fails: true, layers: []layer{{file("f", "x"), symlink("l", "f"), file("l/x", "x")}}},
	{name: "symlinked parent to the root", layers: []layer{{symlink("l", "/"), file("l/f", "x"), symlink("d", "."), file("d/g", "x"), symlink("u", ".."), file("u/h", "x")}}},
	{name: "symlinked parent with dots after a symlink", layers: []layer{{dir("p/q"), symlink("x", "p/q"), symlink("l", "x/../z"), file("l/f", "x"), dir("s"), symlink("s/l", "../x/.."), file("s/l/g", "x")}}},
	{name: "symlinked parent of the layer below only", layers: []layer{{dir("usr/lib"), file("usr/lib/f", "x"), symlink("lib", "usr/lib")}, {file("lib/g", "x")}}},
	{name: "symlinked parent listed again", layers: []layer{{dir("usr/lib"), file("usr/lib/f", "x"), symlink("lib", "usr/lib")}, {symlink("lib", "usr/lib"), file("lib/g", "x")}}},

	{name: "literal whiteout device", layers: []layer{{file("a", "x"), char("b", 0, 0)}, {char("a", 0, 0).Mode(0o644)}}},
	{name: "whiteout by overflow", layers: []layer{{file("a", "x")}, {char("a", 4096, 1<<20)}}},
	{name: "block device 0/0", layers: []layer{{block("a", 0, 0), char("b", 0, 1), char("c", 1, 0)}}},

	{name: "xattrs", layers: []layer{{
		file("f", "x").Xattr("user.a", "1").Xattr("user.empty", "").Xattr("user.bin", "\x01\xff\n").Xattr("security.capability", capNetRaw).Xattr("security.ima", "\x01\x02"),
		file("e", "").Xattr("user.a", strings.Repeat("v", 2000)), dir("d").Xattr("user.d", "d").Xattr("security.x", "y"),
		symlink("s", "t").Xattr("user.ignored", "1").Xattr("security.s", "1"), fifo("p").Xattr("user.ignored", "1").Xattr("security.p", "1"),
		file("c", "x").Xattr("security.capability", capUserNS), file("n", "x").Xattr("user."+strings.Repeat("n", 250), "x"),
	}}},
	{name: "xattrs ignored", layers: []layer{{
		file("f", "x").Xattr("trusted.overlay.metacopy", "").Xattr("trusted.overlay.redirect", "/etc/shadow").Xattr("trusted.x", "y").
			Xattr("com.apple.quarantine", "x").Xattr("system.other", "x").Xattr("user.overlay.opaque", "y").Xattr("LIBARCHIVE.x", "y"),
		dir("d").Xattr("trusted.overlay.opaque", "y").Xattr("user.overlay.opaque", "y"), file("d/f", "x"),
	}, {dir("d").Xattr("trusted.overlay.opaque", "y").Xattr("trusted.overlay.redirect", "/")}}},
	{name: "xattr without a name", fails: true, layers: []layer{{file("f", "x").Xattr("user.", "x")}}},
	{name: "xattr without a name ignored", layers: []layer{{fifo("f").Xattr("user.", "x").Xattr("trusted.", "x")}}},
	{name: "xattr name too long", fails: true, layers: []layer{{file("f", "x").Xattr("user."+strings.Repeat("n", 251), "x")}}},
	{name: "xattr value too long", fails: true, layers: []layer{{file("f", "x").Xattr("user.x", strings.Repeat("n", 65537))}}},
	{name: "capability malformed", fails: true, layers: []layer{{file("f", "x").Xattr("security.capability", "x")}}},
	{name: "capability of a wrong size", fails: true, layers: []layer{{file("f", "x").Xattr("security.capability", capNetRaw+"\x00\x00\x00\x00")}}},
	{name: "capability empty", layers: []layer{{file("f", "x").Xattr("security.capability", "")}}},
	{name: "capability of root", layers: []layer{{file("f", "x").Xattr("security.capability", capUserNS[:20]+"\x00\x00\x00\x00")}}},

	{name: "ACLs", layers: []layer{{
		file("f", "x").Mode(0o640).Xattr(access, aclUser1000), file("g", "x").Mode(0o777).Xattr(access, aclGroups), file("m", "x").Mode(0o700).Xattr(access, aclMinimal),
		dir("d").Mode(0o750).Xattr(access, aclUser1000).Xattr(dfault, aclGroups), fifo("p").Xattr(access, aclUser1000), symlink("s", "f").Xattr(access, aclUser1000),
		file("e", "").Xattr(access, ""), file("v", "").Xattr(access, "\x03\x00\x00\x00"), file("none", "").Xattr(access, "\x02\x00\x00\x00"),
		link("h", "f").Mode(0o600), dir("dm").Xattr(dfault, aclMinimal),
	}}},
	{name: "ACLs inherited", layers: []layer{{
		dir("d").Xattr(dfault, aclUser1000), file("d/f", "x").Mode(0o600), dir("d/e").Mode(0o711), file("d/e/f", "x"), file("d/i/f", "x"), symlink("d/s", "x"), fifo("d/p"),
		char("d/c", 1, 3), link("d/h", "d/f"), file("d/own", "x").Xattr(access, aclGroups), dir("dm").Xattr(dfault, aclMinimal), file("dm/f", "x"), dir("dm/d"),
		dir("d/removed").Xattr(dfault, ""), file("d/removed/f", "x"), file("d/min", "x").Xattr(access, aclMinimal),
	}, {file("d/i/g", "x"), file("d/up", "x").Mode(0o666)}}},
	{name: "ACLs inherited by parents that are copied up", layers: []layer{
		{dir("d").Xattr(dfault, aclUser1000).Mode(0o700), dir("d/plain").Xattr(dfault, "").Xattr(access, ""), dir("d/own").Xattr(access, aclGroups)},
		{file("d/plain/f", "x"), file("d/own/f", "x")},
	}},
	{name: "ACL malformed", fails: true, layers: []layer{{file("f", "x").Xattr(access, aclUser1000[:len(aclUser1000)-1])}}},
	{name: "ACL short", fails: true, layers: []layer{{file("f", "x").Xattr(access, "\x02\x00")}}},
	{name: "ACL without mask", fails: true, layers: []layer{{file("f", "x").Xattr(access, aclUser1000[:28]+aclUser1000[36:])}}},
	{name: "ACL out of order", fails: true, layers: []layer{{file("f", "x").Xattr(access, aclOf([3]uint32{4, 5, none}, [3]uint32{1, 7, none}, [3]uint32{32, 0, none}))}}},
	{name: "ACL of nobody", fails: true, layers: []layer{{file("f", "x").Xattr(access, aclOf([3]uint32{1, 7, none}, [3]uint32{2, 6, none}, [3]uint32{4, 5, none}, [3]uint32{16, 7, none}, [3]uint32{32, 4, none}))}}},
	{name: "default ACL of a file", fails: true, layers: []layer{{file("f", "x").Xattr(dfault, aclUser1000)}}},
	{name: "default ACL of a file, empty", layers: []layer{{file("f", "x").Xattr(dfault, "")}}},

	{name: "same content", layers: []layer{{file("a", "same"), file("b", "same").Mode(0o600)}, {file("c", "same").Owner(1, 1), file("a", "same")}}},
	{name: "content of many blocks", layers: []layer{{file("big", strings.Repeat("0123456789abcdef", 300_000))}}},
	{name: "global header", layers: []layer{{file("x", "x")}}},
	{name: "127 layers", layers: manyLayers(127)},
	{name: "50000 files in a directory", layers: []layer{wideLayer(50_000)}},
}

func manyLayers(n int) (layers []layer) {
	for i := range n {
		l := layer{file(fmt.Sprintf("d/f%d", i), "x"), file("d/all", fmt.Sprint(i)), file(fmt.Sprintf("d/e%d/f", i%7), fmt.Sprint(i))}
		if i%5 == 4 {
			l = append(l, whiteout(fmt.Sprintf("d/f%d", i-2)))
		}
		if i%31 == 30 {
			l = append(l, opaque(fmt.Sprintf("d/e%d", i%3)))
		}
		layers = append(layers, l)
	}
	return layers
}

func wideLayer(n int) layer {
	l := layer{dir("d")}
	for i := range n {
		l = append(l, file(fmt.Sprintf("d/file-%d", i*7919%n), ""))
	}
	return append(l, link("d/link", "d/file-7"), link("z", "d/link"))
}

func TestMergeLikeContainerd(t *testing.T) {
	needRoot(t)
	for _, tc := range stacks {
		t.Run(tc.name, func(t *testing.T) {
			if ok := compareStock(t, tc.layers); ok == tc.fails {
				t.Errorf("unpacked: %v, want %v", ok, !tc.fails)
			}
		})
	}
}
