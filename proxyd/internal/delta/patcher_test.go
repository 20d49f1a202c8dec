package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// bits has the given bits set.
func bits(n ...int) []byte {
	b := make([]byte, 16)
	for _, i := range n {
		b[i/8] |= 1 << (i % 8)
	}
	return b
}

func TestFindBases(t *testing.T) {
	text := func(name string, version, size int) []byte {
		return bytes.Repeat(fmt.Append(nil, name, version), size)
	}
	old, other, nw := newLayer(), newLayer(), newLayer()
	for i, name := range []string{"same", "gone", "coming", "lib/z.so.1.2.13", "a/README", "b/README", "a/index1.js", "tiny"} {
		old.file(t, name, text(name, 1, 40+i))
	}
	other.file(t, "same", text("same", 2, 80))
	for i, name := range []string{"same", "gone", "coming", "lib/z.so.1.3", "c/README", "c/index2.js", "new"} {
		nw.file(t, name, text(name, 3, 41+i))
	}
	nw.file(t, "tiny", []byte("tiny"))
	f, had := newFixture(t, nw), newFixture(t, other, old)
	p := Make(f.img, nil, Order{})
	b := FindBases(f.img, p, []Had{
		{DiffID: had.tocs[0].DiffID, Names: NewNames(had.tocs[0])},
		{DiffID: had.tocs[1].DiffID, Names: NewNames(had.tocs[1]), Missing: bits(1), Coming: bits(2)},
	})
	got := map[uint32]Base{}
	for id := range f.img.Objects {
		if base, ok := b.Of(uint32(id)); ok {
			got[uint32(id)] = base
		}
	}
	want := map[uint32]Base{
		0: {0, 0}, // the name, and of two the size that is nearer
		3: {0, 3}, // digits
		4: {0, 5}, // the last element, and the size
		5: {0, 6}, // both
	}
	if d := cmp.Diff(want, got); d != "" || len(b.Layers) != 1 || b.Layers[0].DiffID != had.tocs[1].DiffID {
		t.Errorf("bases of %d layers differ (-want +got):\n%s", len(b.Layers), d)
	}
}

func TestNormalise(t *testing.T) {
	for in, want := range map[string]string{
		"usr/lib/libz.so.1.2.13": "usr/lib/libz.so.0", "a1b22c": "a0b0c", "v1.": "v0.", "1..2": "0..0", "": "", "x.1.y": "x.0.y",
	} {
		if got := normalise(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// update is an image of which the worker has an older version.
func updateFixture(t testing.TB, r *rand.Rand) (nw, old *fixture) {
	t.Helper()
	a, b := newLayer(), newLayer()
	for i, size := range []int{100, 5000, 60_000, SmallObject, toc.PieceSize - 1000, 3*toc.PieceSize + 99, 70, 2000} {
		name := fmt.Sprintf("f%d", i)
		c := make([]byte, size)
		for j := range c {
			c[j] = byte(r.Uint32())
		}
		a.file(t, name, c)
		c = bytes.Clone(c)
		switch i {
		case 6, 7: // nothing is left of them
			for j := range c {
				c[j] = byte(r.Uint32())
			}
		default:
			c = append(c[:len(c)/2:len(c)/2], append([]byte("inserted"), c[len(c)/2:]...)...)
			c[len(c)-9]++
		}
		b.file(t, name, c)
	}
	b.file(t, "new", randomBytes(r, 1000))
	return newFixture(t, b), newFixture(t, a)
}

// patcherFor patches against all of old.
func patcherFor(f, old *fixture, p *Plan, stored Patches) *Patcher {
	had := []Had{{DiffID: old.tocs[0].DiffID, Names: NewNames(old.tocs[0])}}
	return &Patcher{Encoder: NewEncoder(2, 64<<20, stored), Bases: FindBases(f.img, p, had), Packs: old.packs}
}

// TestStreamPatches is the property: with patches the worker has the image, too.
func TestStreamPatches(t *testing.T) {
	f, old := updateFixture(t, rand.New(rand.NewPCG(1, 9)))
	order := Order{Items: []Item{{Object: 5, First: 2, Pieces: 1}, {Object: 1}}, Hot: 2}
	p := Make(f.img, nil, order)
	plain := stream(t, f, p, nil)
	// A slow link waits for patches.
	pt := patcherFor(f, old, p, nil)
	pt.Rate = 1e3
	w, b := patched(t, f, old, p, Steer{Patcher: pt})
	var pieces []Item
	for _, it := range p.Items {
		for i := range it.Pieces {
			pieces = extend(pieces, it.Object, int(it.First+i))
		}
	}
	if !slices.Equal(w.pieces, pieces) {
		t.Error("pieces were not sent in the order of the plan")
	}
	if w.kinds[wire.KindSegment] != 9 || w.kinds[wire.KindBase] != 6 || w.kinds[wire.KindPlain] != 3 {
		t.Errorf("got entries %v, want 9 segments of 6 objects and 3 plain ones", w.kinds)
	}
	if len(b) > 20_000 || pt.Saved() < int64(len(plain)-30_000) {
		t.Errorf("got %d bytes, %d saved; the plain stream has %d", len(b), pt.Saved(), len(plain))
	}
}

// Whatever the link, patches that nobody has the time to make must not hold up the
// stream for ever, nor what is urgent at all.
func TestStreamDoesNotWaitForABusyEncoder(t *testing.T) {
	for name, rate := range map[string]float64{"a fast link": 1e12, "a usual link": usualRate} {
		t.Run(name, func(t *testing.T) {
			f, old := updateFixture(t, rand.New(rand.NewPCG(1, 10)))
			p := Make(f.img, nil, Order{Items: []Item{{Object: 1}, {Object: 2}}, Hot: 2})
			pt := patcherFor(f, old, p, nil)
			pt.Rate = rate
			if err := pt.Encoder.cpu.Acquire(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			w, _ := patched(t, f, old, p, Steer{Patcher: pt})
			if w.kinds[wire.KindSegment] != 0 {
				t.Errorf("got %d segments of an encoder that does not run", w.kinds[wire.KindSegment])
			}
		})
	}
}

// What becomes urgent while the stream waits for a patch does not wait with it.
func TestUrgentPassesAWaitForAPatch(t *testing.T) {
	f, old := updateFixture(t, rand.New(rand.NewPCG(1, 11)))
	p := Make(f.img, nil, Order{Items: []Item{{Object: 4}}})
	pt := patcherFor(f, old, p, nil)
	pt.Rate = 1e3 // minutes for the first object
	if err := pt.Encoder.cpu.Acquire(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	const wanted = 0
	calls := 0
	urgent := func(bool) []Item {
		if calls++; calls != 2 { // the second time is amid the wait
			return nil
		}
		pt.Encoder.cpu.Release(2)
		return []Item{{Object: wanted, Pieces: 1}}
	}
	skip := func(object uint32, _ int) bool { return object == wanted }
	w, _ := patched(t, f, old, p, Steer{Patcher: pt, Urgent: urgent, Skip: skip})
	if len(w.pieces) == 0 || w.pieces[0].Object != wanted {
		t.Errorf("got %v first, want object %d, for which a reader waits", w.pieces[:min(len(w.pieces), 1)], wanted)
	}
}

// storedPatches are made before.
type storedPatches struct {
	f, old *fixture
	err    error
	look   time.Duration // that it takes to find one
}

type storedPatch struct {
	head     []byte
	segments [][]byte
}

func (s *storedPatches) Patch(ctx context.Context, old, nw Source) (Patch, error) {
	select {
	case <-time.After(s.look):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if s.err != nil {
		return nil, s.err
	}
	from, _ := s.old.img.Index(old.Digest)
	to, _ := s.f.img.Index(nw.Digest)
	p := &storedPatch{}
	err := patch.Encode(ctx, readObject(s.old.all[0], int(from), old.Object), readObject(s.f.all[0], int(to), nw.Object), old.Size, nw.Size, patch.Options{},
		func(piece int, b []byte) error {
			if piece == patch.Head {
				p.head = bytes.Clone(b)
			} else {
				p.segments = append(p.segments, bytes.Clone(b))
			}
			return nil
		})
	return p, err
}

func (p *storedPatch) Head() ([]byte, error) { return p.head, nil }
func (p *storedPatch) Close() error          { return nil }
func (p *storedPatch) Segment(piece int) ([]byte, bool, int, error) {
	if piece == 1 {
		return nil, false, 0, nil // is better sent plain
	}
	z, ok := wire.Compress(nil, p.segments[piece])
	return z, ok, len(p.segments[piece]), nil
}

func TestStreamUsesStoredPatches(t *testing.T) {
	f, old := updateFixture(t, rand.New(rand.NewPCG(1, 11)))
	p := Make(f.img, nil, Order{})
	for name, failure := range map[string]error{"good": nil, "broken": errors.New("broken")} {
		pt := patcherFor(f, old, p, &storedPatches{f: f, old: old, err: failure})
		pt.Rate = 1e3
		if failure == nil {
			// Stored ones need no processor.
			if err := pt.Encoder.cpu.Acquire(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
		}
		w, _ := patched(t, f, old, p, Steer{Patcher: pt})
		if got := w.kinds[wire.KindSegment]; failure == nil && got == 0 || failure != nil && got != 0 {
			t.Errorf("%s: got %d segments", name, got)
		} else if failure == nil && len(w.frames) >= got {
			t.Errorf("%d frames for %d small segments and some objects", len(w.frames), got)
		}
	}
}

// A link that cannot wait for a patch to be made waits for one to be found, but not for a
// store that does not answer.
func TestStreamWaitsForStoredPatches(t *testing.T) {
	f, old := updateFixture(t, rand.New(rand.NewPCG(1, 11)))
	p := Make(f.img, nil, Order{})
	p.Hot = len(p.Items)
	for _, look := range []time.Duration{maxLook / 5, time.Hour} {
		pt := patcherFor(f, old, p, &storedPatches{f: f, old: old, look: look})
		pt.Rate = 1e12
		if err := pt.Encoder.cpu.Acquire(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		w, _ := patched(t, f, old, p, Steer{Patcher: pt})
		if look > maxLook && pt.slow != maxSlow {
			t.Errorf("the stream waited for %d lookups, want %d", pt.slow, maxSlow)
		}
		if got := w.kinds[wire.KindSegment]; (got > 0) != (look < maxLook) {
			t.Errorf("got %d segments from a store that needs %v for each object", got, look)
		}
	}
}

// patched streams a plan to a worker that has old, and returns it and what was sent.
func patched(t *testing.T, f, old *fixture, p *Plan, steer Steer) (*worker, []byte) {
	t.Helper()
	b := bundleWithHeader(t, func(w *wire.Writer) error {
		return Stream(t.Context(), w, f.img, p, f.packs, steer)
	})
	w := newWorker()
	w.bases = old
	if err := w.receive(f.img.Objects, b); err != nil {
		t.Fatal(err)
	}
	return w, b
}

// How fast patches are made is learned from those that are made: what was sent plain
// meanwhile takes no time.
func TestPaceIsOfWhatIsMade(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	before, after := newLayer(), newLayer()
	content := randomBytes(r, 5*toc.PieceSize)
	before.file(t, "f", content)
	after.file(t, "f", append(bytes.Clone(content), "more"...))
	old, f := newFixture(t, before), newFixture(t, after)
	from, to := &old.img.Objects[0], &f.img.Objects[0]
	j := &job{object: to, base: from, method: patch.HD, pieces: make([]segment, to.NumPieces()), change: make(chan struct{})}
	for i := range j.pieces[1:] {
		j.pieces[1+i].plain = true
	}
	e := NewEncoder(1, 64<<20, nil)
	pace := e.pace[0].Load()
	if err := e.run(t.Context(), j, old.all[0], f.all[0], Source{Object: from}, Source{Object: to}); err != nil || j.made != 1 {
		t.Errorf("error %v, %d segments made, want 1", err, j.made)
	}
	if got := e.pace[0].Load(); got != pace {
		t.Errorf("one piece of %d changed the pace from %d to %d bytes a second", len(j.pieces), pace, got)
	}
}

func bundleWithHeader(t testing.TB, write func(*wire.Writer) error) []byte {
	t.Helper()
	return bundle(t, func(w *wire.Writer) error {
		return errors.Join(w.Header(&wire.Header{Bases: []toc.Digest{{1}}}), write(w))
	})
}

func BenchmarkFindBases(b *testing.B) {
	const n = 25_000
	want, had := benchTOC(b, 1, n, 0), benchTOC(b, 0, n, 0)
	tree, err := toc.Merge(want)
	if err != nil {
		b.Fatal(err)
	}
	img, err := NewImage([]*toc.TOC{want}, tree)
	if err != nil {
		b.Fatal(err)
	}
	p := Make(img, nil, Order{})
	layer := Had{Names: NewNames(had)}
	b.Run("names", func(b *testing.B) {
		for b.Loop() {
			NewNames(had)
		}
	})
	for _, layers := range []int{1, 8, 200} {
		b.Run(fmt.Sprint(layers, " layers"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				FindBases(img, p, slices.Repeat([]Had{layer}, layers))
			}
		})
	}
}

func BenchmarkStreamPatched(b *testing.B) {
	f, old := updateFixture(b, rand.New(rand.NewPCG(1, 9)))
	p := Make(f.img, nil, Order{})
	b.SetBytes(p.Bytes)
	for b.Loop() {
		pt := patcherFor(f, old, p, nil)
		pt.Rate = 1e3
		w := wire.NewWriter(discardWriter{})
		if err := Stream(b.Context(), w, f.img, p, f.packs, Steer{Patcher: pt}); err != nil {
			b.Fatal(err)
		}
	}
}

type discardWriter struct{}

func (discardWriter) Write(b []byte) (int, error) { return len(b), nil }

// segment applies a segment as a worker does.
func (w *worker) segment(objects []toc.Object, p wire.Piece, b []byte) ([]byte, error) {
	base, ok := w.base[p.Object]
	if !ok {
		return nil, fmt.Errorf("segment of object %d without a base", p.Object)
	}
	o := &w.bases.tocs[base.piece.Layer].Objects[base.piece.Base]
	old := readObject(w.bases.all[base.piece.Layer], int(base.piece.Base), o)
	a, err := patch.NewApplier(old, o.Size, objects[p.Object].Size, base.head, patch.GoodMemory)
	if err != nil {
		return nil, err
	}
	out, err := a.Apply(nil, int(p.Piece), b)
	if err == nil && sha256.Sum256(out) != objects[p.Object].PieceDigest(int(p.Piece)) {
		err = fmt.Errorf("patch of object %d gives wrong bytes", p.Object)
	}
	return out, err
}

type sentBase struct {
	piece wire.Piece
	head  []byte
}

// A worker on a local network is not made to wait because it was slow for a moment.
func TestLinkRate(t *testing.T) {
	for _, tt := range []struct {
		expected float64
		known    bool
		measured float64
		want     float64
	}{
		{0, false, 0, usualRate},
		{0, false, 1e6, 1e6},
		{0, false, 90e6, 90e6},
		{100e6, false, 0, 100e6},
		{100e6, false, 1e6, 1e6},
		{100e6, true, 1e6, 50e6},
		{100e6, true, 90e6, 90e6},
	} {
		g, ctx := errgroup.WithContext(t.Context())
		p := &Patcher{Rate: tt.expected, Known: tt.known}
		p.start(ctx, g, nil, &Plan{}, nil)
		p.rate.Store(uint64(tt.measured))
		if got := p.linkRate(); got != tt.want {
			t.Errorf("expected %g, measured %g: got %g, want %g", tt.expected, tt.measured, got, tt.want)
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// A large object is waited for if all of it comes sooner as a patch: a little for each
// piece adds up.
func TestPatienceIsForTheWhole(t *testing.T) {
	const pieces, stored = 220, 19_000_000
	now := time.Now()
	ms := func(n int) time.Time { return now.Add(-time.Duration(n) * time.Millisecond) }
	for _, tt := range []struct {
		what           string
		rate           float64
		made           int
		started, first time.Time
		plain          bool
	}{
		{"a slow link, not begun", 12.5e6, 0, time.Time{}, time.Time{}, false},
		{"a slow link, the first pieces are there", 12.5e6, 4, ms(600), ms(0), false},
		{"a slow link, more are", 12.5e6, 40, ms(700), ms(100), false},
		{"a slow link and a slow processor", 12.5e6, 40, ms(3000), ms(1000), true},
		{"a slow link, and slower lately", 12.5e6, 40, ms(700), ms(101), true},
		{"a fast link, not begun", 125e6, 0, time.Time{}, time.Time{}, true},
		{"a fast link, the first pieces are there", 125e6, 4, ms(600), ms(0), true},
		{"a fast link, more are", 125e6, 40, ms(700), ms(100), true},
	} {
		j := &job{
			object: &toc.Object{Size: pieces * toc.PieceSize}, method: patch.HD, change: make(chan struct{}),
			pieces: make([]segment, pieces), n: tt.made, made: tt.made, started: tt.started, first: tt.first,
		}
		for i := range tt.made {
			j.recent[i%lastPass] = tt.first.Add(now.Sub(tt.first) * time.Duration(i) / time.Duration(tt.made))
			if strings.Contains(tt.what, "lately") {
				j.recent[i%lastPass] = tt.first
			}
		}
		p := &Patcher{Encoder: NewEncoder(1, 1, nil), Rate: tt.rate, jobs: map[uint32]*job{7: j}}
		_, s, change, wait := p.take(7, tt.made, stored*(pieces-int64(tt.made))/pieces, 0, true, false)
		if plain := change == nil; plain != tt.plain || s.length > 0 {
			t.Errorf("%s: plain is %v (wait %v), want %v", tt.what, plain, wait, tt.plain)
		}
	}
}
