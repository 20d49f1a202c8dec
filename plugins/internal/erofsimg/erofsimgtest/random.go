package erofsimgtest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
)

// The elements of random paths are few, so that entries meet one another, and
// some are names that programs tend to get wrong.
var elements = []string{"a", "b", "c", "d", "e", "lib", "new\nline", "\xff\xfe", "sp ace", strings.Repeat("n", 255), "+", ".hidden"}

// Random returns a random image of about n entries in the layers, lowest first. The
// same source of randomness gives the same image. Entries that ok refuses are
// left out, all but one in a hundred.
func Random(r *rand.Rand, layers, n int, ok func([]Layer) bool) []Layer {
	image := make([]Layer, layers)
	for i := range image {
		for range r.IntN(2*n/layers + 1) {
			e := randomEntry(r, i)
			image[i] = append(image[i], e)
			if !ok(image[:i+1]) && r.IntN(100) > 0 {
				image[i] = image[i][:len(image[i])-1]
			}
		}
	}
	return image
}

func randomPath(r *rand.Rand) string {
	p := ""
	for range 1 + min(r.IntN(4), r.IntN(4)) {
		p = path.Join(p, elements[min(r.IntN(len(elements)), r.IntN(len(elements)))])
	}
	return p
}

func randomEntry(r *rand.Rand, layer int) Entry {
	p := randomPath(r)
	var e Entry
	switch k := r.IntN(100); {
	case k < 30:
		e = File(p, strings.Repeat(fmt.Sprintf("%d ", r.IntN(50)), r.IntN(4)*r.IntN(3000)))
	case k < 50:
		e = Dir(p)
	case k < 60:
		e = Symlink(p, randomTarget(r))
	case k < 72:
		e = Link(p, randomPath(r))
	case k < 75:
		e = Char(p, int64(r.IntN(3)), int64(r.IntN(3)*1000))
	case k < 77:
		e = Block(p, int64(r.IntN(4096)), int64(r.IntN(1<<20)))
	case k < 80:
		e = Fifo(p)
	case k < 93:
		return Whiteout(p).Owner(r.IntN(3), 0)
	default:
		return Opaque(p)
	}
	e = e.Mode(int64([]int{0o644, 0o755, 0o4755, 0o2775, 0o1777, 0, 0o7777, 0o600}[r.IntN(8)]))
	e = e.Owner([]int{0, 0, 1, 1000, 65534, 100000, 1<<32 - 1}[r.IntN(7)], []int{0, 0, 5, 70000, 1<<32 - 1}[r.IntN(5)])
	e = e.Time([]int64{0, 1, 1e9, 4e9, -1, -1e9, 1 << 34, int64(layer)}[r.IntN(8)], []int64{0, 0, 1, 999999999}[r.IntN(4)])
	for range max(0, r.IntN(5)-2) {
		name, value := randomXattr(r)
		e = e.Xattr(name, value)
	}
	return e
}

func randomTarget(r *rand.Rand) string {
	p := randomPath(r)
	switch r.IntN(5) {
	case 0:
		return "/" + p
	case 1:
		return "../" + p
	case 2:
		return "./" + p + "/../" + randomPath(r)
	case 3:
		return []string{".", "..", "/", "../../.."}[r.IntN(4)]
	}
	return p
}

func randomXattr(r *rand.Rand) (name, value string) {
	switch r.IntN(8) {
	case 0:
		value = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		return "security.capability", value
	case 1, 2:
		return "system.posix_acl_access", randomACL(r)
	case 3, 4:
		return "system.posix_acl_default", randomACL(r)
	case 5:
		return "trusted.overlay.redirect", "/a"
	case 6:
		return "user.overlay.opaque", "y"
	}
	return fmt.Sprintf("user.%d", r.IntN(4)), strings.Repeat("v", r.IntN(300))
}

func randomACL(r *rand.Rand) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	add := func(tag, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, uint16(tag))
		b = binary.LittleEndian.AppendUint16(b, uint16(r.IntN(8)))
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	const none = 1<<32 - 1
	users, groups := r.IntN(3), r.IntN(3)
	add(1, none)
	for i := range users {
		add(2, uint32(1000+i))
	}
	add(4, none)
	for i := range groups {
		add(8, uint32(2000+i))
	}
	if users+groups > 0 || r.IntN(2) == 0 {
		add(16, none)
	}
	add(32, none)
	return string(b)
}

// Describe lists the entries of an image, to reproduce it.
func Describe(image []Layer) string {
	var b strings.Builder
	for i, l := range image {
		for _, e := range l {
			fmt.Fprintf(&b, "layer %d: %c %.60q -> %q mode %#o owner %d:%d time %v size %d", i, e.Typeflag, e.Name, e.Linkname, e.Header.Mode, e.Uid, e.Gid, e.ModTime.UnixNano(), e.Size)
			for k, v := range e.PAXRecords {
				fmt.Fprintf(&b, " %s=%.100q", strings.TrimPrefix(k, paxXattr), v)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}
