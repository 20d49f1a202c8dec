package toc

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// That Merge does what containerd does is tested where the result can be
// mounted, in plugins/internal/erofsimg. These tests need neither root nor a
// kernel.

func reg(name, content string) Entry {
	e := Entry{Name: name, Type: TypeReg, Mode: 0o644, Size: int64(len(content))}
	copy(e.Object[:], content)
	return e
}

func dir(name string, mode uint32) Entry { return Entry{Name: name, Type: TypeDir, Mode: mode} }

func link(name, target string) Entry {
	return Entry{Name: name, Type: TypeLink, Mode: 0o644, Link: target}
}

func symlink(name, target string) Entry { return Entry{Name: name, Type: TypeSymlink, Link: target} }

func layers(lists ...[]Entry) (tocs []*TOC) {
	for _, l := range lists {
		tocs = append(tocs, &TOC{Entries: l})
	}
	return tocs
}

func list(t *testing.T, tree *Tree) []string {
	t.Helper()
	var got []string
	err := tree.Walk(func(path string, n *Node) error {
		s := fmt.Sprintf("%s %d %#o", path, n.Type, n.Mode)
		if n.Type == TypeReg {
			s += " " + strings.TrimRight(string(n.Object[:]), "\x00")
		}
		got = append(got, s)
		if tree.Lookup(path) != n || tree.Lookup("/"+path) != n {
			t.Errorf("Lookup(%q) is not what Walk shows", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestMerge(t *testing.T) {
	for _, tc := range []struct {
		name   string
		layers []*TOC
		want   []string
	}{
		{"nothing", nil, []string{" 1 0755"}},
		{"sorted, parents first", layers([]Entry{reg("a-b", "1"), reg("a/b", "2"), reg("a/a", "3")}),
			[]string{" 1 0755", "a 1 0755", "a/a 0 0644 3", "a/b 0 0644 2", "a-b 0 0644 1"}}, // by element: "a" < "a-b"
		{"merged directory", layers([]Entry{dir("d", 0o700), reg("d/a", "low"), reg("d/b", "low")}, []Entry{dir("d", 0o711), reg("d/b", "up")}),
			[]string{" 1 0755", "d 1 0711", "d/a 0 0644 low", "d/b 0 0644 up"}},
		{"implicit directory", layers([]Entry{dir("d", 0o700)}, []Entry{reg("d/a", "x")}),
			[]string{" 1 0755", "d 1 0700", "d/a 0 0644 x"}},
		{"whiteout", layers([]Entry{reg("a", "x"), reg("b", "x")}, []Entry{reg(".wh.a", "")}),
			[]string{" 1 0755", "b 0 0644 x"}},
		{"opaque", layers([]Entry{reg("d/a", "x")}, []Entry{reg("d/.wh..wh..opq", ""), reg("d/b", "x")}),
			[]string{" 1 0755", "d 1 0755", "d/b 0 0644 x"}},
		{"symlinked parent", layers([]Entry{dir("usr", 0o755), symlink("lib", "usr"), reg("lib/f", "x")}),
			[]string{" 1 0755", "lib 2 0777", "usr 1 0755", "usr/f 0 0644 x"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tree, err := Merge(tc.layers...)
			if err != nil {
				t.Fatal(err)
			}
			if got := list(t, tree); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestWalkStops(t *testing.T) {
	tree, err := Merge(layers([]Entry{reg("a/b", "x"), reg("c", "x")})...)
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	var seen []string
	err = tree.Walk(func(path string, _ *Node) error {
		seen = append(seen, path)
		if path == "a/b" {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || !slices.Equal(seen, []string{"", "a", "a/b"}) {
		t.Errorf("got %q, %v", seen, err)
	}
}

func TestLookupMissing(t *testing.T) {
	tree, err := Merge(layers([]Entry{reg("a/b", "x")})...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"x", "a/x", "a/b/c", "a//b"} {
		if n := tree.Lookup(p); n != nil {
			t.Errorf("Lookup(%q) is %v, want nil", p, n)
		}
	}
}

func TestMergeHardLinks(t *testing.T) {
	tree, err := Merge(layers([]Entry{reg("a", "x"), link("b", "a"), link("c", "b")}, []Entry{reg(".wh.c", "")})...)
	if err != nil {
		t.Fatal(err)
	}
	a, b := tree.Lookup("a"), tree.Lookup("b")
	if a.Inode != b.Inode {
		t.Error("names of a hard link have different inodes")
	}
	if a.Nlink != 3 {
		t.Errorf("Nlink is %d, want 3: the layer gave it three names", a.Nlink)
	}
}

func TestMergeDoesNotChangeTOCs(t *testing.T) {
	e := reg("a", "x")
	e.Xattrs = []Xattr{{"user.a", "1"}, {"user.b", "2"}}
	l := link("b", "a")
	l.Xattrs = []Xattr{{"user.a", "changed"}, {"user.c", "3"}}
	in := layers([]Entry{e, l})[0]
	if _, err := Merge(in); err != nil {
		t.Fatal(err)
	}
	if got := in.Entries[0].Xattrs; got[0].Value != "1" || len(got) != 2 {
		t.Errorf("entry has xattrs %q after Merge", got)
	}
}

func TestMergeRejects(t *testing.T) {
	big := reg("a", "x")
	big.Size = MaxObjectSize + 1
	negative := reg("a", "x")
	negative.Size = -1
	noObject := Entry{Name: "a", Type: TypeReg, Size: 1}
	many := make([]*TOC, MaxLayers+1)
	for i := range many {
		many[i] = &TOC{}
	}
	for name, in := range map[string][]*TOC{
		"dot dot":                layers([]Entry{reg("../a", "x")}),
		"dots":                   layers([]Entry{reg("a/../b", "x")}),
		"absolute":               layers([]Entry{reg("/a", "x")}),
		"slash at the end":       layers([]Entry{dir("a/", 0o755)}),
		"NUL":                    layers([]Entry{reg("a\x00", "x")}),
		"NUL in a target":        layers([]Entry{symlink("a", "b\x00")}),
		"no target":              layers([]Entry{symlink("a", "")}),
		"unclean link":           layers([]Entry{reg("a", "x"), link("b", "./a")}),
		"type":                   layers([]Entry{{Name: "a", Type: 77}}),
		"too large":              layers([]Entry{big}),
		"negative size":          layers([]Entry{negative}),
		"size without object":    layers([]Entry{noObject}),
		"missing TOC":            {nil},
		"too many layers":        many,
		"path too long":          layers([]Entry{reg(strings.Repeat("a/", 2048)+"b", "x")}),
		"path through a symlink": layers([]Entry{symlink("l", strings.Repeat("a/", 1500)), reg("l/"+strings.Repeat("b/", 1500)+"f", "x")}),
		"link to a lower layer":  layers([]Entry{reg("a", "x")}, []Entry{link("b", "a")}),
	} {
		if _, err := Merge(in...); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

func TestMergeDeep(t *testing.T) {
	p := strings.TrimSuffix(strings.Repeat("d/", 2000), "/")
	tree, err := Merge(layers([]Entry{reg(p+"/f", "low")}, []Entry{reg(p+"/g", "up")}, []Entry{reg(p+"/.wh.f", "")})...)
	if err != nil {
		t.Fatal(err)
	}
	if tree.Lookup(p+"/f") != nil || tree.Lookup(p+"/g") == nil {
		t.Error("deep directory is not merged")
	}
}

// TestMergeBounded has images that are small to send but large to merge.
func TestMergeBounded(t *testing.T) {
	t.Run("names", func(t *testing.T) {
		var in []Entry
		for i := range 2000 {
			in = append(in, reg(fmt.Sprintf("%d/%s", i, strings.Repeat("d/", 1000)), "x"))
			in[i].Name = strings.TrimSuffix(in[i].Name, "/")
		}
		b := &budget{nodes: 1 << 20, steps: maxSteps}
		if _, err := unpack(&TOC{Entries: in}, nil, b); !errors.Is(err, ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
	})
	t.Run("symlinks", func(t *testing.T) {
		in := []Entry{dir("end", 0o755), symlink("l0", "end")}
		for i := 1; i < 250; i++ {
			in = append(in, symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("./l%d", i-1)))
		}
		for i := range 1000 {
			in = append(in, reg(fmt.Sprintf("l39/%d", i), "x"))
		}
		b := &budget{nodes: MaxTreeNodes, steps: 10_000}
		if _, err := unpack(&TOC{Entries: in}, nil, b); !errors.Is(err, ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
		if _, err := Merge(&TOC{Entries: in}); err != nil {
			t.Error(err)
		}
	})
	t.Run("paths", func(t *testing.T) {
		d := strings.Repeat("d/", 1900)
		var in []Entry
		for i := range 1000 {
			in = append(in, reg(d+fmt.Sprint(i), "x"))
		}
		b := &budget{nodes: MaxTreeNodes, steps: maxSteps, paths: 5 << 20}
		root, err := unpack(&TOC{Entries: in}, nil, b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stack([]*dirent{root}, b); !errors.Is(err, ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
	})
}

// FuzzMerge makes layers of the lines of its input: a character for the type,
// the name, and after a blank the target. An empty line begins the next layer.
func FuzzMerge(f *testing.F) {
	f.Add("fa\nha2 a\n\nf.wh.a\nfa2")
	f.Add("dd\nsl d\nfl/x\n\nfd/.wh..wh..opq\nfd/y\n\nfl/z")
	f.Add("sa b\nsb a\nfa/c")
	f.Add("cx\nfx/y")
	f.Add("fa/b/c\nf.wh..wh..opq\nfa/.wh.b")
	f.Fuzz(func(t *testing.T, in string) {
		var tocs []*TOC
		for text := range strings.SplitSeq(in, "\n\n") {
			l := &TOC{}
			for line := range strings.SplitSeq(text, "\n") {
				if line == "" {
					continue
				}
				name, target, _ := strings.Cut(line[1:], " ")
				e := Entry{Name: name, Link: target, Mode: uint32(line[0])}
				switch line[0] {
				case 'f':
					e = reg(name, target)
				case 'd':
					e.Type = TypeDir
				case 's':
					e.Type = TypeSymlink
				case 'h':
					e.Type = TypeLink
				case 'c':
					e.Type = TypeChar
				default:
					e.Type, e.Xattrs = TypeDir, []Xattr{{xattrDefaultACL, target}, {xattrAccessACL, target}}
				}
				l.Entries = append(l.Entries, e)
			}
			tocs = append(tocs, l)
		}
		tree, err := Merge(tocs...)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v, want ErrInvalid", err)
			}
			return
		}
		names := map[*Inode]uint32{}
		err = tree.Walk(func(path string, n *Node) error {
			if n.Name == "." || n.Name == ".." || strings.ContainsAny(n.Name, "/\x00") || n.Name == "" && path != "" || len(path) > maxPath {
				t.Errorf("bad name %q", path)
			}
			if !slices.IsSortedFunc(n.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) }) {
				t.Errorf("%q: xattrs are not sorted: %q", path, n.Xattrs)
			}
			if names[n.Inode]++; n.Type != TypeDir && names[n.Inode] > n.Nlink {
				t.Errorf("%q: more than %d names", path, n.Nlink)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkMerge(b *testing.B) {
	var lists [][]Entry
	for l := range 10 {
		var list []Entry
		for i := range 2500 {
			if i%10 == 0 {
				list = append(list, dir(fmt.Sprintf("usr/lib/package-%d-%d", l, i/10), 0o755))
			}
			list = append(list, reg(fmt.Sprintf("usr/lib/package-%d-%d/file-%d", l, i/10, i), "x"))
		}
		lists = append(lists, list)
	}
	in := layers(lists...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Merge(in...); err != nil {
			b.Fatal(err)
		}
	}
}
