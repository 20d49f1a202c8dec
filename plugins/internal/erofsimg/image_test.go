package erofsimg

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins/internal/erofsimg/erofsimgtest"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func merge(t testing.TB, layers ...erofsimgtest.Layer) *toc.Tree {
	t.Helper()
	var tocs []*toc.TOC
	for _, l := range layers {
		tocs = append(tocs, tocOf(l))
	}
	tree, err := toc.Merge(tocs...)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestWriteIsReproducible(t *testing.T) {
	image := stacks[slices.IndexFunc(stacks, func(s stack) bool { return s.name == "127 layers" })].layers
	var first []byte
	for i := range 5 {
		name := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if err := writeFile(name, merge(t, image...), DataOnly); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got
		}
		if !bytes.Equal(got, first) {
			t.Fatal("the same tree gave other bytes")
		}
	}
}

// readBack lists an image with go-erofs, with the node ID of each name.
func readBack(t testing.TB, name string) map[string]*erofs.Stat {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*erofs.Stat{}
	err = fs.WalkDir(img, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*erofs.Stat)
		if !ok {
			return fmt.Errorf("%q: %T", p, info.Sys())
		}
		files[p] = st
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestWriteXattrs(t *testing.T) {
	object := toc.Digest(sha256.Sum256([]byte("x")))
	tree := &toc.Tree{Root: &toc.Node{Inode: &toc.Inode{Type: toc.TypeDir, Nlink: 2}, Children: []*toc.Node{
		{Name: "empty", Inode: &toc.Inode{Nlink: 1}},
		{Name: "f", Inode: &toc.Inode{Nlink: 1, Size: 1, Object: object, Xattrs: []toc.Xattr{
			{Name: "trusted.overlay.redirect", Value: "/evil"}, {Name: "user.x", Value: "y"},
		}}},
	}}}
	name := filepath.Join(t.TempDir(), "image")
	if err := writeFile(name, tree, DataOnly); err != nil {
		t.Fatal(err)
	}
	files := readBack(t, name)
	if got := files["empty"].Xattrs; len(got) != 0 {
		t.Errorf("empty file has xattrs %q", got)
	}
	want := map[string]string{
		"trusted.overlay.metacopy":         "",
		"trusted.overlay.redirect":         "/" + object.Path(),
		"trusted.overlay.overlay.redirect": "/evil",
		"user.x":                           "y",
	}
	if got := files["f"].Xattrs; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWriteHardLinks(t *testing.T) {
	// Directories inline, of one block and of many; links within and across.
	l := erofsimgtest.Layer{erofsimgtest.File("a", "x"), erofsimgtest.Symlink("s", "a"), erofsimgtest.Link("z/s", "s")}
	for i := range 1000 {
		l = append(l, erofsimgtest.File(fmt.Sprintf("big/file with a long name %d", i), "y"))
		if i%3 == 0 {
			l = append(l, erofsimgtest.Link(fmt.Sprintf("big/link %d", i), "a"), erofsimgtest.Link(fmt.Sprintf("z/%d", i), fmt.Sprintf("big/file with a long name %d", i)))
		}
	}
	tree := merge(t, l)
	name := filepath.Join(t.TempDir(), "image")
	if err := writeFile(name, tree, DataOnly); err != nil {
		t.Fatal(err)
	}
	checkImage(t, name, tree)
}

// checkImage checks that the image has the names of the tree, and the same
// hard links.
func checkImage(t testing.TB, name string, tree *toc.Tree) {
	t.Helper()
	files := readBack(t, name)
	inodes, nids := map[*toc.Inode]int64{}, map[int64]*toc.Inode{}
	err := tree.Walk(func(p string, n *toc.Node) error {
		if p == "" {
			p = "."
		}
		st := files[p]
		if st == nil {
			return fmt.Errorf("%q is missing", p)
		}
		delete(files, p)
		if ino, ok := inodes[n.Inode]; ok && ino != st.Ino {
			t.Errorf("%q has node ID %d, its other names %d", p, st.Ino, ino)
		}
		if other, ok := nids[st.Ino]; ok && other != n.Inode {
			t.Errorf("%q shares a node ID with another file", p)
		}
		inodes[n.Inode], nids[st.Ino] = st.Ino, n.Inode
		if n.Type == toc.TypeReg && st.Size != n.Size || st.UID != n.UID || st.GID != n.GID || int64(st.Mtime) != n.MtimeSec || st.MtimeNs != n.MtimeNsec {
			t.Errorf("%q: got %+v, want %+v", p, st, n.Inode)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for p := range files {
		t.Errorf("%q is not in the tree", p)
	}
}

func TestWriteRejects(t *testing.T) {
	huge := func(n int) (l []toc.Xattr) {
		for i := range n {
			l = append(l, toc.Xattr{Name: fmt.Sprintf("user.%02d", i), Value: strings.Repeat("v", 60_000)})
		}
		return l
	}
	for name, in := range map[string]*toc.Inode{
		"value":  {Nlink: 1, Xattrs: []toc.Xattr{{Name: "user.x", Value: strings.Repeat("v", 65536)}}},
		"xattrs": {Nlink: 1, Xattrs: huge(5)},
		"size":   {Nlink: 1, Size: maxData + 1},
	} {
		tree := &toc.Tree{Root: &toc.Node{Inode: &toc.Inode{Type: toc.TypeDir}, Children: []*toc.Node{{Name: "f", Inode: in}}}}
		if err := writeFile(filepath.Join(t.TempDir(), "image"), tree, DataOnly); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	tree := &toc.Tree{Root: &toc.Node{Inode: &toc.Inode{Type: toc.TypeDir}, Children: []*toc.Node{{Name: "f", Inode: &toc.Inode{Nlink: 1, Xattrs: huge(4)}}}}}
	if err := writeFile(filepath.Join(t.TempDir(), "image"), tree, DataOnly); err != nil {
		t.Error(err)
	}
}

func TestMountHugeFiles(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	objects := filepath.Join(dir, "objects")
	var entries []toc.Entry
	sizes := []int64{5<<30 + 7, 1 << 40, toc.PieceSize + 1}
	for i, size := range sizes {
		d := toc.Digest{byte(i), 1}
		name := filepath.Join(objects, d.Path())
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("end"), size-3); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, toc.Entry{Name: fmt.Sprint(i), Type: toc.TypeReg, Mode: 0o644, Object: d, Size: size})
	}
	tree, err := toc.Merge(&toc.TOC{Entries: entries})
	if err != nil {
		t.Fatal(err)
	}
	root := mountTree(t, dir, tree, objects, DataOnly)
	for i, size := range sizes {
		f, err := os.Open(filepath.Join(root, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if st, err := f.Stat(); err != nil || st.Size() != size {
			t.Errorf("size is %d, %v, want %d", st.Size(), err, size)
		}
		var b [3]byte
		if _, err := f.ReadAt(b[:], size-3); err != nil || string(b[:]) != "end" {
			t.Errorf("got %q, %v at the end of the file", b, err)
		}
	}
	if st, err := os.Stat(filepath.Join(filepath.Dir(root), "image.erofs")); err != nil || st.Size() > 1<<16 {
		t.Errorf("image of three files has %d bytes, %v", st.Size(), err)
	}
}

func TestProbe(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	if _, err := Probe(dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("Probe left %v, %v", left, err)
	}
	if _, err := Probe(filepath.Join(dir, "nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

// TestMountFallsBackToLoop mounts from tmpfs, where the kernel refuses to mount
// a file.
func TestMountFallsBackToLoop(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices: ", err)
	}
	dir := tempDir(t)
	tmpfs, em := filepath.Join(dir, "tmpfs"), filepath.Join(dir, "em")
	mountAll(t, tmpfs, func() error { return unix.Mount("tmpfs", tmpfs, "tmpfs", 0, "") })
	image := filepath.Join(tmpfs, "image")
	if err := writeFile(image, merge(t, erofsimgtest.Layer{erofsimgtest.Dir("d")}), DataOnly); err != nil {
		t.Fatal(err)
	}
	mountAll(t, em, func() error { return Mount(image, em) })
	if _, err := os.Stat(filepath.Join(em, "d")); err != nil {
		t.Error(err)
	}
}

func TestUnmountNothing(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Join(dir, "nothing")} {
		if err := Unmount(d); err != nil {
			t.Error(err)
		}
	}
}

// byteSource makes the fuzzer's input the source of randomness. When that has
// run dry it goes on with another.
type byteSource struct {
	in   []byte
	then rand.Source
}

// Uint64 implements rand.Source.
func (s *byteSource) Uint64() uint64 {
	if len(s.in) < 8 {
		return s.then.Uint64()
	}
	v := binary.LittleEndian.Uint64(s.in)
	s.in = s.in[8:]
	return v
}

// FuzzWrite writes images of whatever Merge accepts and reads them back. Minimizing
// its inputs takes long: use -fuzzminimizetime 5x.
func FuzzWrite(f *testing.F) {
	for s := range uint64(8) {
		b := make([]byte, 2048)
		r := rand.New(rand.NewPCG(s, 1))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b, uint8(s%3+1), uint8(30))
	}
	f.Fuzz(func(t *testing.T, in []byte, layers, n uint8) {
		r := rand.New(&byteSource{in, rand.NewPCG(uint64(len(in)), 0)})
		var tocs []*toc.TOC
		for _, l := range erofsimgtest.Random(r, int(layers%4)+1, int(n%32), mergeable()) {
			tocs = append(tocs, tocOf(l))
		}
		tree, err := toc.Merge(tocs...)
		if errors.Is(err, toc.ErrInvalid) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "image")
		if err := writeFile(name, tree, DataOnly); err != nil {
			t.Fatal(err)
		}
		checkImage(t, name, tree)
	})
}

func BenchmarkWrite(b *testing.B) {
	var l erofsimgtest.Layer
	for i := range 25_000 {
		if i%10 == 0 {
			l = append(l, erofsimgtest.Dir(fmt.Sprintf("usr/lib/package-%d", i/10)))
		}
		l = append(l, erofsimgtest.File(fmt.Sprintf("usr/lib/package-%d/file-%d", i/10, i), fmt.Sprint(i)))
		if i%100 == 0 {
			l = append(l, erofsimgtest.Link(fmt.Sprintf("usr/bin/link-%d", i), fmt.Sprintf("usr/lib/package-%d/file-%d", i/10, i)))
		}
	}
	tree := merge(b, l)
	name := filepath.Join(b.TempDir(), "image")
	b.ReportAllocs()
	for b.Loop() {
		if err := writeFile(name, tree, DataOnly); err != nil {
			b.Fatal(err)
		}
		st, err := os.Stat(name)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(st.Size()), "image-bytes")
		if err := os.Remove(name); err != nil {
			b.Fatal(err)
		}
	}
}
