package erofsimg

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	. "github.com/starlight-delta/starlight/plugins/internal/erofsimg/erofsimgtest"
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
	layers []Layer
	fails  bool // containerd does not unpack it
}

// stacks are images, lowest layer first, whose unpacking is not obvious.
var stacks = []stack{
	{name: "no layers' worth", layers: []Layer{{}}},
	{name: "empty layers", layers: []Layer{{}, {File("a", "a")}, {}, {}}},
	{name: "root entry", layers: []Layer{{Dir(".").Mode(0o700).Owner(5, 6)}, {Dir("./").Mode(0o711), File("./a", "a")}}},
	{name: "types", layers: []Layer{{
		Dir("d").Mode(0o1777), File("d/f", "content"), File("d/empty", ""), Symlink("d/s", "f"), Link("d/h", "d/f"),
		Char("d/null", 1, 3), Block("d/loop", 7, 300), Fifo("d/p"), Char("d/big", 500, 700000), Char("d/overflow", 4095, 1<<20-1),
	}}},
	{name: "modes and owners", layers: []Layer{{
		File("suid", "x").Mode(0o4755), File("sgid", "x").Mode(0o2755), Dir("sticky").Mode(0o1777), Dir("sgdir").Mode(0o2775).Owner(1, 77),
		File("none", "x").Mode(0), File("all", "x").Mode(0o7777), File("owner", "x").Owner(70000, 80000), File("sgdir/f", "x"),
		File("sgdir/implicit/f", "x"), Symlink("l", "x").Owner(3, 4).Mode(0o600), File("nobody", "").Owner(1<<32-2, 1<<32-2),
	}}},
	{name: "owner -1", layers: []Layer{{
		Dir("d").Mode(0o2755).Owner(8, 9), File("d/f", "x").Owner(1<<32-1, 1<<32-1), File("f", "x").Owner(4, 5), Link("h", "f").Owner(1<<32-1, 6),
	}}},
	{name: "times", layers: []Layer{{
		File("ns", "x").Time(1, 1), File("zero", "x").Time(0, 0), File("negative", "x").Time(-1, 0), File("negative-ns", "x").Time(-5, 999999999),
		File("2100", "x").Time(4102444800, 0), File("2261", "x").Time(9223372036, 854775807), File("late", "x").Time(9223372037, 0),
		Dir("d").Time(5, 5), File("d/f", "x").Time(1<<33, 7), Symlink("s", "t").Time(77, 8), Fifo("p").Time(3, 2),
	}}},
	{name: "names", layers: []Layer{{
		File("new\nline", "x"), File("not-utf8-\xff\xfe", "x"), File(strings.Repeat("n", 255), "x"), File("a:b,c\\d", "x"), Dir(" "), File(" /!", "x"),
		File("\x01", "x"), File("+", "x"), File("...", "x"), File(".a", "x"), File("-", "x"), File("..a", "x"), Symlink("l\xff", "t\xfe\n"),
	}}},
	{name: "name too long", fails: true, layers: []Layer{{File(strings.Repeat("n", 256), "x")}}},
	{name: "long path", layers: []Layer{{File(strings.Repeat("dddddddddddddd/", 200)+"f", "x")}}},
	{name: "long symlink", layers: []Layer{{Symlink("l", strings.Repeat("x", 4000))}}},
	{name: "unclean names", layers: []Layer{{File("./a//b/./c", "x"), File("/abs", "x"), File("../up", "x"), File("a/../d", "x"), Link("h", "./a/b/../b/c")}}},

	{name: "merged directory", layers: []Layer{
		{Dir("d").Mode(0o700).Owner(1, 1).Time(5, 5).Xattr("user.low", "1"), File("d/a", "low"), File("d/b", "low")},
		{Dir("d").Mode(0o755).Owner(2, 2).Time(6, 6).Xattr("user.up", "2"), File("d/b", "up"), File("d/c", "up")},
	}},
	{name: "implicit parents", layers: []Layer{
		{Dir("d").Mode(0o2710).Owner(3, 4).Xattr("user.x", "y").Xattr(access, aclUser1000), Dir("d/e").Mode(0o1711).Owner(5, 6)},
		{File("d/e/f", "x"), File("new/dir/f", "x")},
		{File("d/e/g", "x")},
	}},
	{name: "implicit parent of a whiteout keeps times", layers: []Layer{
		{Dir("d").Mode(0o710).Time(5, 6), Dir("d/e").Time(7, 8), File("d/e/f", "x")}, {Opaque("d/e")},
	}},
	{name: "implicit parent, attributes skip a layer", layers: []Layer{{Dir("d").Mode(0o700).Owner(7, 7)}, {File("x", "x")}, {File("d/f", "x")}}},
	{name: "implicit parent over whiteout", layers: []Layer{{Dir("d").Mode(0o700).Owner(7, 7), File("d/old", "x")}, {Whiteout("d")}, {File("d/f", "x")}}},
	{name: "implicit parent below whiteout", fails: true, layers: []Layer{{Dir("d/e").Mode(0o700)}, {Whiteout("d")}, {File("d/e/f", "x")}}},
	{name: "implicit parent over opaque", layers: []Layer{{Dir("d"), Dir("d/e").Mode(0o700), File("d/e/x", "x")}, {Opaque("d")}, {File("d/e/f", "x")}}},
	{name: "implicit parent is a file below", layers: []Layer{{File("d", "file")}, {File("d/f", "x")}}},
	{name: "implicit parent is a symlink below", layers: []Layer{{Dir("real").Mode(0o711).Owner(1, 2), File("real/x", "x"), Symlink("d", "real")}, {File("d/f", "x")}}},
	{name: "implicit parent is an absolute symlink below", layers: []Layer{{Dir("real").Mode(0o711), Symlink("d", "/real")}, {File("d/e/f", "x")}}},
	{name: "implicit parent is a dangling symlink below", layers: []Layer{{Symlink("d", "nowhere")}, {File("d/f", "x")}}},
	{name: "implicit parent below a looping symlink", fails: true, layers: []Layer{{Symlink("d", "d2"), Symlink("d2", "d")}, {File("d/f", "x")}}},

	{name: "file over file", layers: []Layer{{File("f", "low").Mode(0o600).Xattr("user.x", "y")}, {File("f", "up")}}},
	{name: "file over directory", layers: []Layer{{Dir("d"), File("d/f", "x")}, {File("d", "file")}}},
	{name: "directory over file", layers: []Layer{{File("d", "file")}, {Dir("d"), File("d/f", "x")}}},
	{name: "directory over symlink", layers: []Layer{{Dir("t"), File("t/x", "x"), Symlink("d", "t")}, {Dir("d"), File("d/f", "x")}}},
	{name: "symlink over directory", layers: []Layer{{Dir("d"), File("d/f", "x")}, {Symlink("d", "t")}}},
	{name: "file hides, directory again", layers: []Layer{{Dir("d"), File("d/low", "x")}, {File("d", "file")}, {Dir("d"), File("d/up", "x")}}},
	{name: "device over all", layers: []Layer{{File("a", "x"), Dir("b"), Fifo("c")}, {Char("a", 1, 5), Char("b", 1, 5), Block("c", 1, 5)}}},

	{name: "whiteout", layers: []Layer{{File("a", "x"), Dir("d"), File("d/f", "x"), Symlink("s", "a")}, {Whiteout("a"), Whiteout("d"), Whiteout("s")}}},
	{name: "whiteout of nothing", layers: []Layer{{File("a", "x")}, {Whiteout("b"), Dir("n"), Whiteout("n/x"), Whiteout("m/x")}}},
	{name: "whiteout in the lowest layer", layers: []Layer{{File("a", "x"), Whiteout("a"), Whiteout("b"), File("c", "x")}}},
	{name: "whiteout in the lowest layer of a directory", fails: true, layers: []Layer{{Dir("d"), File("d/f", "x"), Whiteout("d")}}},
	{name: "whiteout in the lowest layer of an implicit directory", layers: []Layer{{File("d/f", "x"), Whiteout("d")}}},
	{name: "whiteout in the lowest layer of a hard link", layers: []Layer{{File("a", "x"), Link("b", "a"), Link("c", "a"), Whiteout("b")}}},
	{name: "whiteout, then file", layers: []Layer{{File("a", "low")}, {Whiteout("a"), File("a", "up")}}},
	{name: "whiteout, then directory", layers: []Layer{{Dir("d"), File("d/f", "low")}, {Whiteout("d"), Dir("d"), File("d/g", "up")}}},
	{name: "whiteout, then below it", fails: true, layers: []Layer{{Dir("d"), File("d/f", "low")}, {Whiteout("d"), File("d/g", "up")}}},
	{name: "file, then whiteout", fails: true, layers: []Layer{{File("a", "low")}, {File("a", "up"), Whiteout("a")}}},
	{name: "whiteout twice", fails: true, layers: []Layer{{File("a", "x")}, {Whiteout("a"), Whiteout("a")}}},
	{name: "whiteout, re-created above", layers: []Layer{{Dir("d"), File("d/f", "low")}, {Whiteout("d")}, {Dir("d"), File("d/g", "up")}}},
	{name: "whiteout of any type", layers: []Layer{{File("a", "x"), File("b", "x"), File("c", "x")}, {
		Dir(".wh.a"), Symlink(".wh.b", "x"), File(".wh.c", "with content"), Link(".wh.d", "nowhere"),
	}}},
	{name: "whiteout below a file", fails: true, layers: []Layer{{File("a", "x")}, {File("a", "x"), Whiteout("a/b")}}},
	{name: "whiteout through a symlink", layers: []Layer{{Dir("d"), File("d/f", "x")}, {Dir("d"), Symlink("l", "d"), Whiteout("l/f")}}},
	{name: "hard link to a whiteout", layers: []Layer{{File("a", "x"), File("b", "x")}, {Whiteout("a"), Link("b", "a")}}},
	{name: "whiteout owner", layers: []Layer{{File("a", "x")}, {Whiteout("a").Owner(1, 2), Link("c", "a")}}},
	{name: "whiteout without a name", fails: true, layers: []Layer{{}, {File(".wh.", "")}}},
	{name: "whiteout of dot", fails: true, layers: []Layer{{}, {File("d/.wh..", "")}}},
	{name: "whiteout of dot dot", fails: true, layers: []Layer{{File("d/.wh...", "")}}},
	{name: "aufs metadata", layers: []Layer{{Dir(".wh..wh.plnk"), File(".wh..wh.aufs", "")}, {Dir(".wh..wh.plnk"), File(".wh..wh.orph/x", ""), File(".wh..wh.aufs", "")}}},
	{name: "aufs links", layers: []Layer{{Dir(".wh..wh.plnk"), File(".wh..wh.plnk/1.2", "x"), Link("a", ".wh..wh.plnk/1.2")}}},

	{name: "opaque", layers: []Layer{{Dir("d"), File("d/a", "low"), Dir("d/e"), File("d/e/f", "low")}, {Dir("d"), Opaque("d"), File("d/b", "up")}}},
	{name: "opaque last", layers: []Layer{{Dir("d"), File("d/a", "low")}, {Dir("d"), File("d/b", "up"), Opaque("d")}}},
	{name: "opaque first", layers: []Layer{{Dir("d"), File("d/a", "low")}, {Opaque("d"), Dir("d"), File("d/b", "up")}}},
	{name: "opaque twice", layers: []Layer{{Dir("d"), File("d/a", "low")}, {Opaque("d"), Opaque("d"), File("d/b", "up")}}},
	{name: "opaque root", layers: []Layer{{Dir("d"), File("d/a", "low"), File("f", "low")}, {Opaque("."), File("d/b", "up")}}},
	{name: "opaque, merged above", layers: []Layer{{Dir("d"), File("d/a", "1")}, {Opaque("d"), File("d/b", "2")}, {File("d/c", "3")}, {Dir("d").Mode(0o700)}}},
	{name: "opaque lost with the directory", layers: []Layer{{Dir("d"), File("d/a", "low")}, {Opaque("d"), File("d", "x"), Dir("d"), File("d/b", "x")}}},
	{name: "opaque below a file", fails: true, layers: []Layer{{}, {File("d", "x"), Opaque("d")}}},
	{name: "opaque of a new directory", layers: []Layer{{File("a", "x")}, {Opaque("new")}}},
	{name: "opaque in the lowest layer", layers: []Layer{{Dir("d"), File("d/a", "x"), File("d/implicit/b", "x"), Dir("d/e"), File("d/e/f", "x"), Opaque("d"), File("d/c", "x")}}},
	{name: "opaque in the lowest layer, again", layers: []Layer{{Dir("d"), Opaque("d"), File("d/i/b", "x"), Opaque("d"), File("r/i/b", "x"), Opaque(".")}}},
	{name: "opaque in the lowest layer, replaced", layers: []Layer{{File("d/a", "x"), Whiteout("d/a"), File("d/a/b", "x"), Opaque("d")}}},
	{name: "opaque directory over opaque", layers: []Layer{{Dir("d/e"), File("d/e/1", "1")}, {Opaque("d/e"), File("d/e/2", "2")}, {Opaque("d"), File("d/e/3", "3")}, {File("d/e/4", "4")}}},

	{name: "hard links", layers: []Layer{{File("a", "x"), Link("b", "a"), Dir("d"), Link("d/c", "b"), Link("e", "/d/c")}}},
	{name: "hard link attributes win", layers: []Layer{{
		File("a", "x").Mode(0o4755).Owner(1, 1).Xattr("security.capability", capNetRaw).Xattr("user.a", "1"),
		Link("b", "a").Mode(0o600).Owner(2, 2).Time(9, 9).Xattr("user.b", "2"),
	}}},
	{name: "hard link keeps a capability it lists", layers: []Layer{{File("a", "x").Xattr("security.capability", capNetRaw), Link("b", "a").Xattr("security.capability", capNetRaw)}}},
	{name: "hard link to a symlink", layers: []Layer{{File("t", "x"), Symlink("s", "t"), Link("h", "s").Owner(3, 3)}}},
	{name: "hard link to devices", layers: []Layer{{Fifo("p"), Link("p2", "p"), Char("c", 1, 3), Link("c2", "c").Mode(0o666)}}},
	{name: "hard link to an empty file", layers: []Layer{{File("a", ""), Link("b", "a")}}},
	{name: "hard link to a missing target", fails: true, layers: []Layer{{Link("b", "a")}}},
	{name: "hard link to a later target", fails: true, layers: []Layer{{Link("b", "a"), File("a", "x")}}},
	{name: "hard link to a lower layer", fails: true, layers: []Layer{{File("a", "x")}, {Link("b", "a")}}},
	{name: "hard link to a directory", fails: true, layers: []Layer{{Dir("a"), Link("b", "a")}}},
	{name: "hard link to the root", fails: true, layers: []Layer{{Link("b", "/")}}},
	{name: "hard link to itself", fails: true, layers: []Layer{{File("a", "x"), Link("a", "a")}}},
	{name: "hard link through a symlink", layers: []Layer{{Dir("d"), File("d/f", "x"), Symlink("l", "d"), Link("h", "l/f")}}},
	{name: "hard link over its name", layers: []Layer{{File("a", "x"), File("b", "y"), Link("b", "a"), Link("b", "a")}}},
	{name: "hard link over a directory", layers: []Layer{{File("a", "x"), File("d/f", "y"), Link("d", "a")}}},
	{name: "hard link into the directory it replaces", fails: true, layers: []Layer{{File("d/f", "y"), Link("d", "d/f")}}},
	{name: "hard link, target replaced", layers: []Layer{{File("a", "x"), Link("b", "a"), File("a", "y")}}},
	{name: "hard link hidden above", layers: []Layer{{File("a", "x"), Link("b", "a"), Link("c", "a")}, {Whiteout("b")}, {File("c", "new")}}},
	{name: "hard links in two layers", layers: []Layer{{File("a", "x"), Link("b", "a")}, {File("a", "y"), Link("c", "a")}}},

	{name: "repeated names", layers: []Layer{{
		File("f", "1"), File("f", "2").Mode(0o600), Dir("d").Mode(0o700).Xattr("user.a", "1"), File("d/f", "x"), Dir("d").Mode(0o711).Xattr("user.b", "2"),
		Symlink("s", "1"), Symlink("s", "2"), File("x", "x"), Dir("x"), File("x/y", "x"), Dir("z"), File("w", "x"), Symlink("w", "x"),
	}}},
	{name: "directory replaced by a file", layers: []Layer{{Dir("d").Time(5, 5), File("d", "x").Time(6, 6)}}},
	{name: "directory replaced by a symlink", layers: []Layer{{Dir("t").Time(3, 3), File("t/f", "x"), Dir("d").Time(5, 5), Symlink("d", "t").Time(6, 6)}}},
	{name: "directory replaced by a dangling symlink", fails: true, layers: []Layer{{Dir("d"), Symlink("d", "t")}}},
	{name: "parent of a directory replaced", fails: true, layers: []Layer{{Dir("d/e"), File("d", "x")}}},
	{name: "parent of a directory replaced and made again", layers: []Layer{{Dir("d/e").Time(4, 4), File("d", "x"), Dir("d"), Dir("d/e").Time(5, 5)}}},
	{name: "entry below a file", fails: true, layers: []Layer{{File("a", "x"), File("a/b", "x")}}},
	{name: "entry deep below a file", fails: true, layers: []Layer{{File("a", "x"), File("a/b/c", "x")}}},
	{name: "entry below a device", fails: true, layers: []Layer{{Char("a", 1, 3), File("a/b", "x")}}},

	{name: "symlinked parents", layers: []Layer{{
		Dir("usr/lib"), Symlink("lib", "usr/lib"), File("lib/f", "x"), Symlink("abs", "/usr"), File("abs/lib/g", "x"), Symlink("up", "../../usr"), File("up/h", "x"),
		Symlink("chain", "abs/lib"), File("chain/i", "x"), Dir("chain/dir").Time(5, 5), Symlink("usr/back", "../usr/lib"), File("usr/back/j", "x"),
	}}},
	{name: "symlinked parent dangling", layers: []Layer{{Symlink("l", "/no/where"), File("l/f", "x"), Symlink("m", "nope"), Dir("m/d")}}},
	{name: "symlinked parent loops", fails: true, layers: []Layer{{Symlink("l", "m"), Symlink("m", "l"), File("l/f", "x")}}},
	{name: "symlinked parent to itself", fails: true, layers: []Layer{{Symlink("l", "l"), File("l/f", "x")}}},
	{name: "symlinked parent to a file", fails: true, layers: []Layer{{File("f", "x"), Symlink("l", "f"), File("l/x", "x")}}},
	{name: "symlinked parent to the root", layers: []Layer{{Symlink("l", "/"), File("l/f", "x"), Symlink("d", "."), File("d/g", "x"), Symlink("u", ".."), File("u/h", "x")}}},
	{name: "symlinked parent with dots after a symlink", layers: []Layer{{Dir("p/q"), Symlink("x", "p/q"), Symlink("l", "x/../z"), File("l/f", "x"), Dir("s"), Symlink("s/l", "../x/.."), File("s/l/g", "x")}}},
	{name: "symlinked parent of the layer below only", layers: []Layer{{Dir("usr/lib"), File("usr/lib/f", "x"), Symlink("lib", "usr/lib")}, {File("lib/g", "x")}}},
	{name: "symlinked parent listed again", layers: []Layer{{Dir("usr/lib"), File("usr/lib/f", "x"), Symlink("lib", "usr/lib")}, {Symlink("lib", "usr/lib"), File("lib/g", "x")}}},

	{name: "literal whiteout device", layers: []Layer{{File("a", "x"), Char("b", 0, 0)}, {Char("a", 0, 0).Mode(0o644)}}},
	{name: "whiteout by overflow", layers: []Layer{{File("a", "x")}, {Char("a", 4096, 1<<20)}}},
	{name: "block device 0/0", layers: []Layer{{Block("a", 0, 0), Char("b", 0, 1), Char("c", 1, 0)}}},

	{name: "xattrs", layers: []Layer{{
		File("f", "x").Xattr("user.a", "1").Xattr("user.empty", "").Xattr("user.bin", "\x01\xff\n").Xattr("security.capability", capNetRaw).Xattr("security.ima", "\x01\x02"),
		File("e", "").Xattr("user.a", strings.Repeat("v", 2000)), Dir("d").Xattr("user.d", "d").Xattr("security.x", "y"),
		Symlink("s", "t").Xattr("user.ignored", "1").Xattr("security.s", "1"), Fifo("p").Xattr("user.ignored", "1").Xattr("security.p", "1"),
		File("c", "x").Xattr("security.capability", capUserNS), File("n", "x").Xattr("user."+strings.Repeat("n", 250), "x"),
	}}},
	{name: "xattrs ignored", layers: []Layer{{
		File("f", "x").Xattr("trusted.overlay.metacopy", "").Xattr("trusted.overlay.redirect", "/etc/shadow").Xattr("trusted.x", "y").
			Xattr("com.apple.quarantine", "x").Xattr("system.other", "x").Xattr("user.overlay.opaque", "y").Xattr("LIBARCHIVE.x", "y"),
		Dir("d").Xattr("trusted.overlay.opaque", "y").Xattr("user.overlay.opaque", "y"), File("d/f", "x"),
	}, {Dir("d").Xattr("trusted.overlay.opaque", "y").Xattr("trusted.overlay.redirect", "/")}}},
	{name: "xattr without a name", fails: true, layers: []Layer{{File("f", "x").Xattr("user.", "x")}}},
	{name: "xattr without a name ignored", layers: []Layer{{Fifo("f").Xattr("user.", "x").Xattr("trusted.", "x")}}},
	{name: "xattr name too long", fails: true, layers: []Layer{{File("f", "x").Xattr("user."+strings.Repeat("n", 251), "x")}}},
	{name: "xattr value too long", fails: true, layers: []Layer{{File("f", "x").Xattr("user.x", strings.Repeat("n", 65537))}}},
	{name: "capability malformed", fails: true, layers: []Layer{{File("f", "x").Xattr("security.capability", "x")}}},
	{name: "capability of a wrong size", fails: true, layers: []Layer{{File("f", "x").Xattr("security.capability", capNetRaw+"\x00\x00\x00\x00")}}},
	{name: "capability empty", layers: []Layer{{File("f", "x").Xattr("security.capability", "")}}},
	{name: "capability of root", layers: []Layer{{File("f", "x").Xattr("security.capability", capUserNS[:20]+"\x00\x00\x00\x00")}}},

	{name: "ACLs", layers: []Layer{{
		File("f", "x").Mode(0o640).Xattr(access, aclUser1000), File("g", "x").Mode(0o777).Xattr(access, aclGroups), File("m", "x").Mode(0o700).Xattr(access, aclMinimal),
		Dir("d").Mode(0o750).Xattr(access, aclUser1000).Xattr(dfault, aclGroups), Fifo("p").Xattr(access, aclUser1000), Symlink("s", "f").Xattr(access, aclUser1000),
		File("e", "").Xattr(access, ""), File("v", "").Xattr(access, "\x03\x00\x00\x00"), File("none", "").Xattr(access, "\x02\x00\x00\x00"),
		Link("h", "f").Mode(0o600), Dir("dm").Xattr(dfault, aclMinimal),
	}}},
	{name: "ACLs inherited", layers: []Layer{{
		Dir("d").Xattr(dfault, aclUser1000), File("d/f", "x").Mode(0o600), Dir("d/e").Mode(0o711), File("d/e/f", "x"), File("d/i/f", "x"), Symlink("d/s", "x"), Fifo("d/p"),
		Char("d/c", 1, 3), Link("d/h", "d/f"), File("d/own", "x").Xattr(access, aclGroups), Dir("dm").Xattr(dfault, aclMinimal), File("dm/f", "x"), Dir("dm/d"),
		Dir("d/removed").Xattr(dfault, ""), File("d/removed/f", "x"), File("d/min", "x").Xattr(access, aclMinimal),
	}, {File("d/i/g", "x"), File("d/up", "x").Mode(0o666)}}},
	{name: "ACLs inherited by parents that are copied up", layers: []Layer{
		{Dir("d").Xattr(dfault, aclUser1000).Mode(0o700), Dir("d/plain").Xattr(dfault, "").Xattr(access, ""), Dir("d/own").Xattr(access, aclGroups)},
		{File("d/plain/f", "x"), File("d/own/f", "x")},
	}},
	{name: "ACL malformed", fails: true, layers: []Layer{{File("f", "x").Xattr(access, aclUser1000[:len(aclUser1000)-1])}}},
	{name: "ACL short", fails: true, layers: []Layer{{File("f", "x").Xattr(access, "\x02\x00")}}},
	{name: "ACL without mask", fails: true, layers: []Layer{{File("f", "x").Xattr(access, aclUser1000[:28]+aclUser1000[36:])}}},
	{name: "ACL out of order", fails: true, layers: []Layer{{File("f", "x").Xattr(access, aclOf([3]uint32{4, 5, none}, [3]uint32{1, 7, none}, [3]uint32{32, 0, none}))}}},
	{name: "ACL of nobody", fails: true, layers: []Layer{{File("f", "x").Xattr(access, aclOf([3]uint32{1, 7, none}, [3]uint32{2, 6, none}, [3]uint32{4, 5, none}, [3]uint32{16, 7, none}, [3]uint32{32, 4, none}))}}},
	{name: "default ACL of a file", fails: true, layers: []Layer{{File("f", "x").Xattr(dfault, aclUser1000)}}},
	{name: "default ACL of a file, empty", layers: []Layer{{File("f", "x").Xattr(dfault, "")}}},

	{name: "same content", layers: []Layer{{File("a", "same"), File("b", "same").Mode(0o600)}, {File("c", "same").Owner(1, 1), File("a", "same")}}},
	{name: "content of many blocks", layers: []Layer{{File("big", strings.Repeat("0123456789abcdef", 300_000))}}},
	{name: "global header", layers: []Layer{{File("x", "x")}}},
	{name: "127 layers", layers: manyLayers(127)},
	{name: "50000 files in a directory", layers: []Layer{wideLayer(50_000)}},
}

func manyLayers(n int) (layers []Layer) {
	for i := range n {
		l := Layer{File(fmt.Sprintf("d/f%d", i), "x"), File("d/all", fmt.Sprint(i)), File(fmt.Sprintf("d/e%d/f", i%7), fmt.Sprint(i))}
		if i%5 == 4 {
			l = append(l, Whiteout(fmt.Sprintf("d/f%d", i-2)))
		}
		if i%31 == 30 {
			l = append(l, Opaque(fmt.Sprintf("d/e%d", i%3)))
		}
		layers = append(layers, l)
	}
	return layers
}

func wideLayer(n int) Layer {
	l := Layer{Dir("d")}
	for i := range n {
		l = append(l, File(fmt.Sprintf("d/file-%d", i*7919%n), ""))
	}
	return append(l, Link("d/link", "d/file-7"), Link("z", "d/link"))
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
