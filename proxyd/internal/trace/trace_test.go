package trace

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
)

// start is a full trace of whole objects in this order.
func start(objects ...uint32) *Trace {
	t := &Trace{}
	for i, o := range objects {
		t.Items = append(t.Items, TimedItem{Item{Object: o}, uint32(i)})
	}
	return t
}

func TestAggregate(t *testing.T) {
	partial := func(objects ...uint32) *Trace {
		tr := start(objects...)
		tr.Partial = true
		return tr
	}
	parts := func(items ...Item) *Trace {
		tr := &Trace{}
		for _, it := range items {
			tr.Items = append(tr.Items, TimedItem{it, 0})
		}
		return tr
	}
	small := []uint32{1, 1, 1, 1, 1, 1, 1, 1}
	for _, tt := range []struct {
		name   string
		traces []*Trace
		pieces []uint32
		want   string
		hot    int
	}{
		{"none", nil, small, "[]", 0},
		{"one", []*Trace{start(3, 1, 2)}, small, "[{3 0 1} {1 0 1} {2 0 1}]", 3},
		{"median", []*Trace{start(1, 2, 3), start(2, 1, 3), start(1, 2, 3)}, small, "[{1 0 1} {2 0 1} {3 0 1}]", 3},
		{"an odd one is outvoted", []*Trace{start(1, 2), start(1, 2), start(7, 6, 5, 2, 1), start(1, 2), start(1, 2)}, small,
			"[{1 0 1} {2 0 1} {7 0 1} {6 0 1} {5 0 1}]", 2},
		{"half is enough", []*Trace{start(1, 2), start(1, 3)}, small, "[{1 0 1} {2 0 1} {3 0 1}]", 3},
		{"out of range", []*Trace{parts(Item{9, 0, 0}, Item{1, 1, 0}, Item{2, 0, 99}, Item{3, 4e9, 4e9})}, small, "[{2 0 1}]", 1},
		{"waited for", []*Trace{start(1), partial(4), partial(5, 4)}, small, "[{1 0 1} {5 0 1} {4 0 1}]", 3},
		{"waited for is all", []*Trace{partial(4)}, small, "[{4 0 1}]", 1},
		{"pieces", []*Trace{parts(Item{0, 0, 1}, Item{1, 0, 0}, Item{0, 9, 1}), parts(Item{0, 0, 2}, Item{1, 0, 0}, Item{0, 9, 0}), parts(Item{0, 0, 1}, Item{1, 0, 0})},
			[]uint32{10, 1}, "[{0 0 1} {1 0 1} {0 9 1} {0 1 1}]", 3},
		{"neighbours are joined", []*Trace{parts(Item{0, 0, 2}, Item{0, 2, 3})}, []uint32{10}, "[{0 0 5}]", 1},
	} {
		got := Aggregate(tt.traces, tt.pieces)
		if fmt.Sprint(got.Items) != tt.want || got.Hot != tt.hot {
			t.Errorf("%s: got %v, %d hot, want %s, %d", tt.name, got.Items, got.Hot, tt.want, tt.hot)
		}
	}
}

// TestGroup: an image of a group has the median times of the group's traces.
func TestGroup(t *testing.T) {
	in := func(group string, times ...uint32) *Trace {
		tr := &Trace{Group: group}
		for i, at := range times {
			tr.Items = append(tr.Items, TimedItem{Item{Object: uint32(i)}, at})
		}
		return tr
	}
	partial := in("other", 1, 2, 3)
	partial.Partial = true
	got := Aggregate([]*Trace{partial, in("", 5, 5, 5), in("web", 100, 300, 200), in("web", 120, 320, 210), in("web", 9000, 9001, 9002), in("old", 1, 1, 1)}, []uint32{1, 1, 1})
	if want := "{[{0 0 1} {1 0 1} {2 0 1}] 3 5 web [120 320 320]}"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// TestAggregateNamesEveryPieceOnce: whatever reports say, the order is one of the
// image's own pieces.
func TestAggregateNamesEveryPieceOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		pieces := make([]uint32, 1+r.IntN(6))
		for i := range pieces {
			pieces[i] = 1 + r.Uint32N(200)
		}
		var traces []*Trace
		for range r.IntN(6) {
			tr := &Trace{Partial: r.IntN(3) == 0}
			for range r.IntN(200) {
				tr.Items = append(tr.Items, TimedItem{Item{r.Uint32N(7), r.Uint32N(220), r.Uint32N(220)}, 0})
			}
			traces = append(traces, tr)
		}
		got := Aggregate(traces, pieces)
		named := map[[2]uint32]bool{}
		for _, it := range got.Items {
			if it.Pieces == 0 || it.First+it.Pieces > pieces[it.Object] {
				t.Fatalf("%v of %d pieces", it, pieces[it.Object])
			}
			for p := range it.Pieces {
				k := [2]uint32{it.Object, it.First + p}
				if named[k] {
					t.Fatalf("piece %v twice", k)
				}
				named[k] = true
			}
		}
		if got.Hot > len(got.Items) {
			t.Fatalf("%d hot of %d", got.Hot, len(got.Items))
		}
	}
}

func TestEncode(t *testing.T) {
	want := &Trace{Partial: true, Group: "g", Items: []TimedItem{{Item{5, 0, 0}, 0}, {Item{1, 7, 2}, 3}, {Item{4e9, 1, 1}, 1000}}}
	got, err := Decode(want.Encode())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add((&Trace{Group: "g", Items: []TimedItem{{Item{5, 0, 0}, 0}, {Item{1, 7, 2}, 3}}}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Decode(tr.Encode())
		if err != nil || !reflect.DeepEqual(again, tr) {
			t.Fatalf("%+v becomes %+v, %v", tr, again, err)
		}
		Aggregate([]*Trace{tr, tr}, []uint32{1, 2, 300})
	})
}

func TestProfile(t *testing.T) {
	o := Order{Items: []Item{{1, 0, 1}, {2, 0, 0}, {0, 0, 1}, {0, 9, 1}, {4, 0, 1}, {3, 0, 1}}, Hot: 5, Group: "web", Times: []uint32{20, 30, 30, 40, 50}}
	p := NewProfile(o, []uint32{10, 1, 4, 1, 1}, []string{"usr/lib/big.jar", "bin/app", "usr/lib/libssl.so.3.0.11", "cold", ""})
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if p, err = DecodeProfile(b); err != nil {
		t.Fatal(err)
	}
	next := NewFiles()
	next.Add("usr/lib/libssl.so.3.0.13", File{3, 5})
	next.Add("usr/lib/libssl.so.1.1", File{9, 5})
	next.Add("bin/app", File{7, 1})
	next.Add("usr/lib/big.jar", File{8, 12})
	got, found := p.Apply(next)
	want := "{[{7 0 0} {3 0 0} {8 0 1} {8 11 0}] 4 0 web [20 30 30 40]}"
	if fmt.Sprint(got) != want || found != 4 {
		t.Errorf("got %v, %d found, want %s", got, found, want)
	}
	for i := range 9 {
		next.Add(fmt.Sprintf("usr/lib/python3.%d/row", i), File{uint32(20 + i), 1})
	}
	if _, ok := next.find("usr/lib/python3.77/row"); ok {
		t.Error("one of a row of files is taken for a version of another")
	}
}

func FuzzDecodeProfile(f *testing.F) {
	b, err := (&Profile{Entries: []Entry{{Path: "a", First: 1, End: true}}}).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		if p, err := DecodeProfile(b); err == nil {
			files := NewFiles()
			files.Add("a", File{0, 3})
			p.Apply(files)
		}
	})
}

func BenchmarkAggregate(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	pieces := make([]uint32, 20000)
	for i := range pieces {
		pieces[i] = 1
	}
	var traces []*Trace
	for range 64 {
		tr := &Trace{}
		for _, i := range r.Perm(5000) {
			tr.Items = append(tr.Items, TimedItem{Item{Object: uint32(i)}, 0})
		}
		traces = append(traces, tr)
	}
	for b.Loop() {
		Aggregate(traces, pieces)
	}
}
