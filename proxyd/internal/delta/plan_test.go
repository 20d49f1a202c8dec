package delta

import (
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

var update = flag.Bool("update", false, "write the golden files")

// randomInventory is what a worker could say of the layers of f, with what it has.
func randomInventory(r *rand.Rand, f *fixture, w *worker) []Inventory {
	var have []Inventory
	for l, t := range f.tocs {
		kind := r.IntN(4)
		if kind == 0 {
			continue
		}
		h := Inventory{TOC: t}
		if kind > 1 {
			h.Missing = make([]byte, (len(t.Objects)+7)/8)
			for i := range h.Missing {
				h.Missing[i] = byte(r.Uint32())
			}
		}
		for i := range t.Objects {
			if !missing(h.Missing, i) {
				var b []byte
				for p := range t.Objects[i].NumPieces() {
					b, _ = f.all[l].AppendPiece(b, i, p)
				}
				w.have[t.Objects[i].Digest] = b
			}
		}
		have = append(have, h)
	}
	return have
}

// TestDeltaGivesTheImage is the property that all is about: whatever a worker
// has, what it is sent makes the image complete, and is needed.
func TestDeltaGivesTheImage(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 0))
		f, old := randomFixture(t, r), randomFixture(t, r)
		w := newWorker()
		have := randomInventory(r, old, w)
		have = append(have, randomInventory(r, f, w)...)
		had := make(map[toc.Digest]bool)
		for d := range w.have {
			had[d] = true
		}
		order := Order{Items: make([]Item, r.IntN(len(f.img.Objects)+1))}
		for i := range order.Items {
			order.Items[i] = Item{Object: r.Uint32N(uint32(len(f.img.Objects)) + 3), First: r.Uint32N(3), Pieces: r.Uint32N(4)}
		}
		order.Hot = r.IntN(len(order.Items) + 1)
		p := Make(f.img, have, order)
		if err := w.receive(f.img.Objects, stream(t, f, p, nil)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		checkDelta(t, f, p, w, had)
		checkLocal(t, f, p, order, had)
	}
}

// checkLocal: every hot item is either sent or local.
func checkLocal(t *testing.T, f *fixture, p *Plan, order Order, had map[toc.Digest]bool) {
	t.Helper()
	var want []Item
	for _, it := range order.Items[:order.Hot] {
		if int64(it.Object) < int64(len(f.img.Objects)) && f.img.needed[it.Object] && had[f.img.Objects[it.Object].Digest] &&
			int64(it.First) < int64(f.img.Objects[it.Object].NumPieces()) {
			want = append(want, it)
		}
	}
	if d := cmp.Diff(want, p.Local); d != "" {
		t.Errorf("local items differ (-want +got):\n%s", d)
	}
}

func checkDelta(t *testing.T, f *fixture, p *Plan, w *worker, had map[toc.Digest]bool) {
	t.Helper()
	needed, bytes := map[toc.Digest]bool{}, int64(0)
	err := f.tree.Walk(func(path string, n *toc.Node) error {
		if n.Type != toc.TypeReg || n.Size == 0 || needed[n.Object] {
			return nil
		}
		needed[n.Object] = true
		bytes += n.Size
		if toc.Digest(sha256.Sum256(w.have[n.Object])) != n.Object {
			return fmt.Errorf("%q is missing or wrong", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if p.TotalObjects != len(needed) || p.TotalBytes != bytes {
		t.Errorf("totals: got %d, %d, want %d, %d", p.TotalObjects, p.TotalBytes, len(needed), bytes)
	}
	sum := int64(0)
	var pieces []Item
	for _, it := range p.Items {
		o := f.img.Objects[it.Object]
		if !needed[o.Digest] || had[o.Digest] {
			t.Errorf("object %d was sent: needed %v, had %v", it.Object, needed[o.Digest], had[o.Digest])
		}
		for i := range it.Pieces {
			sum += int64(o.PieceLen(int(it.First + i)))
			pieces = extend(pieces, it.Object, int(it.First+i))
		}
	}
	if sum != p.Bytes || len(w.got) != p.Objects {
		t.Errorf("got %d objects of %d bytes, the plan says %d of %d", len(w.got), sum, p.Objects, p.Bytes)
	}
	if !slices.Equal(w.pieces, pieces) {
		t.Error("pieces were not sent in the order of the plan")
	}
}

func TestMakeFollowsTheOrder(t *testing.T) {
	l := newLayer()
	for i := range 6 {
		l.file(t, fmt.Sprintf("f%d", i), fmt.Append(nil, "contents", i))
	}
	f := newFixture(t, l)
	have := []Inventory{{TOC: f.tocs[0], Missing: []byte{0b110111}}} // has 3
	got := Make(f.img, have, Order{Items: whole(5, 99, 3, 5, 1<<32-1, 0), Hot: 3})
	if d := cmp.Diff(whole(5, 0, 1, 2, 4), got.Items); d != "" {
		t.Errorf("plan differs (-want +got):\n%s", d)
	}
	if got.Hot != 1 {
		t.Errorf("got %d hot items, want 1: the others are had, wrong or after them", got.Hot)
	}
}

func TestMakeCutsObjects(t *testing.T) {
	f := textFixture(t, 1, 1000, 9*toc.PieceSize+1)
	run := func(object, first, pieces uint32) Item { return Item{Object: object, First: first, Pieces: pieces} }
	got := Make(f.img, nil, Order{Items: []Item{
		run(1, 8, 1), run(1, 4, 2), run(1, 3, 3), run(0, 1, 0), run(0, 0, 7), run(1, 9, 1<<31), run(1, 10, 0),
	}, Hot: 2})
	want := []Item{run(1, 8, 1), run(1, 4, 2), run(1, 3, 1), run(0, 0, 1), run(1, 9, 1), run(1, 0, 3), run(1, 6, 2)}
	if d := cmp.Diff(want, got.Items); d != "" {
		t.Errorf("plan differs (-want +got):\n%s", d)
	}
	if got.Hot != 2 || got.Objects != 2 {
		t.Errorf("got %d hot items, %d objects, want 2, 2", got.Hot, got.Objects)
	}
	w := newWorker()
	if err := w.receive(f.img.Objects, stream(t, f, got, nil)); err != nil {
		t.Fatal(err)
	}
}

func TestMakeLeavesHiddenObjectsOut(t *testing.T) {
	lower, upper := newLayer(), newLayer()
	lower.file(t, "a", []byte("old a"))
	lower.file(t, "dir/b", []byte("b"))
	lower.file(t, "c", []byte("moved"))
	upper.file(t, "a", []byte("new a"))
	upper.file(t, ".wh.dir", nil)
	upper.file(t, ".wh.c", nil)
	upper.file(t, "d", []byte("moved"))
	f := newFixture(t, lower, upper)
	p := Make(f.img, nil, Order{Items: whole(0, 1, 2, 3), Hot: 0})
	if d := cmp.Diff(whole(2, 3), p.Items); d != "" {
		t.Errorf("plan differs (-want +got):\n%s", d)
	}
	if at := f.img.Place(2); at != (Place{0, 2}) {
		t.Errorf("the moved file is taken from %v, want the lower layer", at)
	}
}

func TestPlanDigest(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	f := randomFixture(t, r)
	first := Make(f.img, nil, Order{})
	if again := Make(f.img, nil, Order{}); again.Digest != first.Digest {
		t.Error("equal plans have different digests")
	}
	last := first.Items[len(first.Items)-1]
	if other := Make(f.img, nil, Order{Items: []Item{last}}); other.Digest == first.Digest {
		t.Error("plans of different order have the same digest")
	}
	w := newWorker()
	if other := Make(f.img, randomInventory(r, f, w), Order{}); other.Objects != first.Objects && other.Digest == first.Digest {
		t.Error("plans of different objects have the same digest")
	}
}

// The golden file shows in which order an image is sent.
func TestMakeGolden(t *testing.T) {
	lower, upper := newLayer(), newLayer()
	big := make([]byte, 3*SmallObject)
	for i, name := range []string{
		"bin/sh", "etc/conf", "usr/bin/node", "usr/lib/a.so", "usr/lib/b.so", "usr/share/doc/x/copyright",
		"usr/share/man/man1/x.1", "usr/share/x/data", "var/cache/x",
	} {
		b := fmt.Append(nil, name)
		if strings.HasSuffix(name, ".so") || strings.HasSuffix(name, "node") {
			binary.BigEndian.PutUint32(big, uint32(i))
			b = big[:len(big)-i*SmallObject/4]
		}
		lower.file(t, name, b)
	}
	upper.file(t, "app/index.js", []byte("app/index.js"))
	upper.file(t, "usr/lib/copyright-of-x", []byte("usr/share/doc/x/copyright"))
	upper.file(t, "usr/share/.wh..wh..opq", nil)
	upper.file(t, "usr/share/doc/y", []byte("usr/share/doc/y"))
	f := newFixture(t, lower, upper)
	sh, _ := f.img.Index(sha256.Sum256([]byte("bin/sh")))
	index, _ := f.img.Index(sha256.Sum256([]byte("app/index.js")))
	p := Make(f.img, nil, Order{Items: whole(index, sh), Hot: 1})
	names := map[toc.Digest]string{}
	_ = f.tree.Walk(func(path string, n *toc.Node) error {
		names[n.Object] += " " + path
		return nil
	})
	var got strings.Builder
	for _, it := range p.Items {
		id := it.Object
		fmt.Fprintf(&got, "%d %d%s\n", id, f.img.Objects[id].Size, names[f.img.Objects[id].Digest])
	}
	fmt.Fprintf(&got, "%d objects, %d bytes, of %d, %d\n%s\n", p.Objects, p.Bytes, p.TotalObjects, p.TotalBytes, p.Digest)
	file := filepath.Join("testdata", "plan.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("plan differs (-want +got):\n%s", d)
	}
}

func FuzzMake(f *testing.F) {
	img := randomFixture(f, rand.New(rand.NewPCG(5, 5)))
	f.Add([]byte{}, []byte{}, uint8(0))
	f.Add([]byte{0xff}, []byte{0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, uint8(3))
	f.Fuzz(func(t *testing.T, bits, order []byte, layers uint8) {
		var have []Inventory
		for i, l := range img.tocs {
			if layers>>i&1 != 0 {
				have = append(have, Inventory{TOC: l, Missing: bits})
			}
		}
		var o Order
		for ; len(order) >= 6; order = order[6:] {
			o.Items = append(o.Items, Item{Object: binary.BigEndian.Uint32(order), First: uint32(order[4]), Pieces: uint32(order[5])})
		}
		o.Hot = int(layers)
		p := Make(img.img, have, o)
		if p.Objects > p.TotalObjects || p.Bytes > p.TotalBytes || p.Hot > len(p.Items) {
			t.Fatalf("plan is more than the image: %+v", p)
		}
	})
}

// benchTOC is a layer of n distinct files; those from the number changed on
// differ between generations.
func benchTOC(b *testing.B, gen, n, changed int) *toc.TOC {
	bd := toc.NewBuilder()
	for i := range n {
		key := fmt.Sprint("file", i)
		if i >= changed {
			key += fmt.Sprint("generation", gen)
		}
		e := toc.Entry{Name: fmt.Sprintf("usr/lib/d%d/file%d", i/20, i), Object: sha256.Sum256([]byte(key)), Size: int64(1 + i%9000)}
		if _, _, err := bd.Add(e, nil); err != nil {
			b.Fatal(err)
		}
	}
	return bd.TOC(sha256.Sum256(fmt.Append(nil, gen)))
}

func BenchmarkMake(b *testing.B) {
	const n = 25_000
	want, had := benchTOC(b, 1, n, n/2), benchTOC(b, 0, n, n/2)
	tree, err := toc.Merge(want)
	if err != nil {
		b.Fatal(err)
	}
	img, err := NewImage([]*toc.TOC{want}, tree)
	if err != nil {
		b.Fatal(err)
	}
	order := Order{Items: make([]Item, 2000), Hot: 2000}
	for i := range order.Items {
		order.Items[i].Object = uint32(n - 1 - 7*i%n)
	}
	for name, have := range map[string][]Inventory{"fresh": nil, "update": {{TOC: had}}, "same": {{TOC: want}}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Make(img, have, order)
			}
		})
	}
	b.Run("image", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := NewImage([]*toc.TOC{want}, tree); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Pieces that the worker has are not planned, and nothing else is left out.
func TestPlanLeavesOutPieces(t *testing.T) {
	tested := false
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		f := randomFixture(t, r)
		whole := Make(f.img, nil, Order{})
		for _, it := range whole.Items {
			if it.Pieces < 3 {
				continue
			}
			tested = true
			o := f.img.Objects[it.Object]
			part := []wire.Partial{{Object: o.Digest, Pieces: []byte{0b101}}, {Object: toc.Digest{1}, Pieces: []byte{0xff}}}
			got := Make(f.img, []Inventory{{Partial: part}}, Order{})
			if got.Digest == whole.Digest || got.Bytes >= whole.Bytes || got.Objects != whole.Objects {
				t.Errorf("seed %d: plan of %d bytes without two pieces, %d with", seed, got.Bytes, whole.Bytes)
			}
			planned := map[int]bool{}
			for _, it2 := range got.Items {
				for i := it2.First; it2.Object == it.Object && i < it2.First+it2.Pieces; i++ {
					planned[int(i)] = true
				}
			}
			for i := range o.NumPieces() {
				if planned[i] == (i == 0 || i == 2) {
					t.Errorf("seed %d: piece %d of %d planned: %v", seed, i, o.NumPieces(), planned[i])
				}
			}
		}
	}
	if !tested {
		t.Error("no image had a large object")
	}
}

// TestTimes: each hot item of a plan has the time of the item of the order that it is of.
func TestTimes(t *testing.T) {
	l := newLayer()
	for i := range 6 {
		l.file(t, fmt.Sprintf("f%d", i), fmt.Append(nil, "contents", i))
	}
	f := newFixture(t, l)
	have := []Inventory{{TOC: f.tocs[0], Missing: []byte{0b110111}}} // has 3
	got := Make(f.img, have, Order{Items: whole(5, 3, 99, 5, 0, 1), Hot: 5, Group: "g", Times: []uint32{10, 20, 30, 40, 50}})
	if got.Group != "g" || got.Hot != 2 || fmt.Sprint(got.Times) != "[10 50]" {
		t.Errorf("got group %q, %d hot, times %v, want g, 2, [10 50]", got.Group, got.Hot, got.Times)
	}
}

// TestClaimsBefore: how far away hot objects are counts what is not sent yet.
func TestClaimsBefore(t *testing.T) {
	l := newLayer()
	for i := range 6 {
		l.file(t, fmt.Sprintf("f%d", i), fmt.Append(nil, "contents", i))
	}
	f := newFixture(t, l)
	c := NewClaims(f.img, Make(f.img, nil, Order{Items: whole(5, 3, 0, 1), Hot: 3}))
	if got := fmt.Sprint(c.Before()); got != "map[0:18 3:9 5:0]" {
		t.Errorf("got %s", got)
	}
	if !c.Take(5) || c.Take(5) || !c.Take(1) {
		t.Error("what is not sent yet is taken once")
	}
	if got := fmt.Sprint(c.Before()); got != "map[0:9 3:0]" {
		t.Errorf("got %s after one was taken", got)
	}
}
