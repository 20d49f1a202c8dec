package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func TestStreamIsDeterministic(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	f, other := randomFixture(t, r), randomFixture(t, r)
	p := Make(f.img, nil, Order{})
	first := stream(t, f, p, nil)
	for range 5 {
		stream(t, other, Make(other.img, nil, Order{}), nil) // leaves traces in pooled encoders
		if !bytes.Equal(first, stream(t, f, p, nil)) {
			t.Fatal("the same plan gave other bytes")
		}
	}
}

func TestStreamSkips(t *testing.T) {
	f := randomFixture(t, rand.New(rand.NewPCG(7, 7)))
	p := Make(f.img, nil, Order{})
	c := NewClaims(f.img, p)
	var want, all, asked []Item
	for i, it := range p.Items {
		for n := range it.Pieces {
			piece := int(it.First + n)
			all = extend(all, it.Object, piece)
			if (i+int(n))%3 == 0 {
				c.Claim(it.Object, piece)
			} else {
				want = extend(want, it.Object, piece)
			}
		}
	}
	w := newWorker()
	b := stream(t, f, p, func(id uint32, piece int) bool {
		asked = extend(asked, id, piece)
		return c.Skip(id, piece)
	})
	if err := w.read(f.img.Objects, b); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(w.pieces, want) {
		t.Errorf("got %v, want %v", w.pieces, want)
	}
	if !slices.Equal(asked, all) {
		t.Error("skip was not asked once for each piece in the order of the plan")
	}
}

// textFixture has n small files of the size in one directory, then a large one.
func textFixture(t testing.TB, n, size, large int) *fixture {
	r := rand.New(rand.NewPCG(8, 8))
	l := newLayer()
	for i := range n {
		l.file(t, fmt.Sprintf("dir/f%06d", i), randomBytes(r, size))
	}
	if large > 0 {
		b := bytes.Repeat(randomBytes(r, min(large, toc.PieceSize)), (large+toc.PieceSize-1)/toc.PieceSize)
		l.file(t, "zz/large", b[:large])
	}
	return newFixture(t, l)
}

func TestStreamFramesGrow(t *testing.T) {
	f := textFixture(t, 400, 10_000, toc.PieceSize+5)
	w := newWorker()
	if err := w.receive(f.img.Objects, stream(t, f, Make(f.img, nil, Order{}), nil)); err != nil {
		t.Fatal(err)
	}
	// 64, 128, then up to 256 KiB; the pieces of the large one alone.
	want := append([]int{70_000, 140_000}, slices.Repeat([]int{260_000}, 14)...)
	want = append(want, 150_000, toc.PieceSize, 5)
	if !slices.Equal(w.frames, want) {
		t.Errorf("got frames of %v bytes, want %v", w.frames, want)
	}
}

func TestStreamManyTinyObjects(t *testing.T) {
	l := newLayer()
	for i := range 3*wire.MaxCount + 1 {
		l.file(t, fmt.Sprint(i), binary.BigEndian.AppendUint32(nil, uint32(i)))
	}
	f := newFixture(t, l)
	w := newWorker()
	if err := w.receive(f.img.Objects, stream(t, f, Make(f.img, nil, Order{}), nil)); err != nil {
		t.Fatal(err)
	}
	if len(w.got) != len(f.img.Objects) || len(w.frames) != 4 {
		t.Errorf("got %d objects in %d frames, want %d in 4", len(w.got), len(w.frames), len(f.img.Objects))
	}
}

// A small urgent object before a large one must not wait for what comes after.
func TestStreamDoesNotHoldBack(t *testing.T) {
	f := textFixture(t, 10, 1000, 2*SmallObject)
	large := uint32(10)
	w := newWorker()
	b := stream(t, f, Make(f.img, nil, Order{Items: whole(3, large, 5), Hot: 0}), nil)
	if err := w.receive(f.img.Objects, b); err != nil {
		t.Fatal(err)
	}
	if want := []int{1000, 2 * SmallObject, 9000}; !slices.Equal(w.frames, want) {
		t.Errorf("got frames of %v bytes, want %v", w.frames, want)
	}
}

type brokenPack struct {
	memPack
	err error
}

func (p brokenPack) AppendPiece(dst []byte, object, piece int) ([]byte, error) {
	if p.err != nil {
		return nil, p.err
	}
	dst, err := p.memPack.AppendPiece(dst, object, piece)
	return dst[:len(dst)-1], err
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestStreamReportsErrors(t *testing.T) {
	f := textFixture(t, 100, 20_000, 0)
	p := Make(f.img, nil, Order{})
	broken := errors.New("broken")
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	packOf := func(pack Pack, err error) Packs {
		return func(context.Context, int) (Pack, error) { return pack, err }
	}
	tests := map[string]struct {
		ctx   context.Context //nolint:containedctx // an argument of the case
		w     io.Writer
		packs Packs
		want  error
	}{
		"writer":     {t.Context(), brokenWriter{broken}, f.packs, broken},
		"pack":       {t.Context(), io.Discard, packOf(brokenPack{err: broken}, nil), broken},
		"no pack":    {t.Context(), io.Discard, packOf(nil, broken), broken},
		"short pack": {t.Context(), io.Discard, packOf(brokenPack{memPack: f.all[0]}, nil), toc.ErrInvalid},
		"canceled":   {canceled, io.Discard, f.packs, broken},
	}
	for name, tt := range tests {
		if err := Stream(tt.ctx, wire.NewWriter(tt.w), f.img, p, tt.packs, Steer{}); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
}

// stopWriter takes some bytes, then tells that it is stopped and waits.
type stopWriter struct {
	left    int
	once    sync.Once
	stopped *sync.WaitGroup
	resume  <-chan struct{}
}

func (w *stopWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		w.once.Do(w.stopped.Done)
		<-w.resume
	}
	return len(b), nil
}

// Ten streams to slow workers must fit into a small proxyd.
func TestStreamMemory(t *testing.T) {
	const streams = 10
	f := textFixture(t, 600, 2000, 20*toc.PieceSize)
	p := Make(f.img, nil, Order{})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var stopped sync.WaitGroup
	stopped.Add(streams)
	resume := make(chan struct{})
	g, ctx := errgroup.WithContext(t.Context())
	for range streams {
		g.Go(func() error {
			w := wire.NewWriter(&stopWriter{left: 2 << 20, stopped: &stopped, resume: resume})
			return Stream(ctx, w, f.img, p, f.packs, Steer{})
		})
	}
	stopped.Wait()
	runtime.GC() // what is held counts, how lazily it is collected is for GOGC to say
	runtime.ReadMemStats(&after)
	close(resume)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d streams hold %d MB", streams, held/1e6)
	if held > 100e6 {
		t.Errorf("%d streams hold %d bytes, want less than 100 MB", streams, held)
	}
}

func TestAnswer(t *testing.T) {
	l := newLayer()
	for i := range 100 {
		l.file(t, fmt.Sprintf("a/f%02d", i), fmt.Append(nil, "a", i))
	}
	for i := range 20 {
		l.file(t, fmt.Sprintf("b/f%02d", i), bytes.Repeat([]byte{'b', byte(i)}, 60_000))
	}
	l.file(t, "a/large", make([]byte, toc.PieceSize+1))
	for _, name := range []string{"c/x/f", "c/y/f", "c/y/z/f"} {
		l.file(t, name, []byte(name))
	}
	f := newFixture(t, l)
	id := func(first, n int) (ids []uint32) {
		for i := range n {
			ids = append(ids, uint32(first+i))
		}
		return ids
	}
	had := Make(f.img, []Inventory{{TOC: f.tocs[0], Missing: []byte{0, 0xf0}}}, Order{}) // lacks 12 to 15
	tests := map[string]struct {
		asked  []Item
		exact  bool
		claims *Claims
		want   []uint32
	}{
		"exact":              {[]Item{{Object: 50}, {Object: 120}, {Object: 3}, {Object: 50}}, true, nil, []uint32{50, 120, 3}},
		"around the end":     {whole(90), false, nil, slices.Concat(id(90, 10), id(0, 90))},
		"below and beside":   {whole(122), false, nil, []uint32{122, 123, 121}},
		"not above 2 MiB":    {whole(100), false, nil, id(100, 18)},
		"large alone":        {[]Item{{Object: 120}}, false, nil, []uint32{120}},
		"not what is had":    {whole(13), false, NewClaims(f.img, had), []uint32{13, 14, 15, 12}},
		"asked though it is": {whole(1), false, NewClaims(f.img, had), []uint32{1, 12, 13, 14, 15}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorker()
			b := bundle(t, func(w *wire.Writer) error {
				return Answer(t.Context(), w, f.img, tt.asked, tt.exact, f.packs, tt.claims)
			})
			if err := w.receive(f.img.Objects, b); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(w.got, tt.want) {
				t.Errorf("got %v, want %v", w.got, tt.want)
			}
			if tt.claims == nil {
				return
			}
			for _, id := range w.got {
				if tt.claims.Claim(id, 0) {
					t.Errorf("object %d was sent and not claimed", id)
				}
			}
		})
	}
	err := Answer(t.Context(), wire.NewWriter(io.Discard), f.img, whole(124), false, f.packs, nil)
	if !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("unknown object: got %v, want ErrInvalid", err)
	}
}

// Stream and answers together send everything, and what is not asked for once.
func TestClaimsAreShared(t *testing.T) {
	f := textFixture(t, 2000, 700, 0)
	p := Make(f.img, nil, Order{})
	c := NewClaims(f.img, p)
	var g errgroup.Group
	got := make([]*worker, 4)
	for i := range got {
		got[i] = newWorker()
		g.Go(func() error {
			b := bundle(t, func(w *wire.Writer) error {
				if i == 0 {
					return Stream(t.Context(), w, f.img, p, f.packs, Steer{Skip: c.Skip})
				}
				return Answer(t.Context(), w, f.img, whole(uint32(i*450)), false, f.packs, c)
			})
			return got[i].receive(f.img.Objects, b)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	times := map[uint32]int{}
	for _, w := range got {
		for _, id := range w.got {
			times[id]++
		}
	}
	for _, it := range p.Items {
		id := it.Object
		asked := id%450 == 0 && id > 0 && id < 4*450
		if n := times[id]; n != 1 && (!asked || n != 2) {
			t.Errorf("object %d was sent %d times", id, n)
		}
	}
}

// A reader that waits for some pieces of a large object gets these next, once, and
// the rest where it was planned.
func TestUrgentPieces(t *testing.T) {
	f := textFixture(t, 3, 1000, 20*toc.PieceSize)
	const large = 3
	run := func(first, pieces uint32) Item { return Item{Object: large, First: first, Pieces: pieces} }
	p := Make(f.img, nil, Order{})
	c := NewClaims(f.img, p)
	asked := map[int][]Item{2: {run(15, 2)}, 5: {run(16, 3), run(1, 1)}} // when piece number … comes
	w := newWorker()
	b := bundle(t, func(w *wire.Writer) error {
		return Stream(t.Context(), w, f.img, p, f.packs, Steer{Urgent: c.Urgent, Skip: func(object uint32, piece int) bool {
			if object == large && asked[piece] != nil {
				if rest := c.Urge(asked[piece], true); len(rest) > 0 {
					t.Errorf("%v will not come with the stream", rest)
				}
				delete(asked, piece)
			}
			return c.Skip(object, piece)
		}})
	})
	if err := w.receive(f.img.Objects, b); err != nil {
		t.Fatal(err)
	}
	want := append(whole(0, 1, 2), run(0, 3), run(15, 2), run(3, 3), run(17, 2), run(6, 9), run(19, 1))
	if !slices.Equal(w.pieces, want) {
		t.Errorf("got %v, want %v", w.pieces, want)
	}
	// What was sent may not have arrived; it is not sent twice. What was not is the rest.
	if rest := c.Urge([]Item{run(7, 1)}, true); len(rest) > 0 {
		t.Errorf("asked after the end: got %v as the rest", rest)
	}
	c = NewClaims(f.img, p)
	c.Urgent(true)
	if rest := c.Urge([]Item{run(7, 1)}, true); !slices.Equal(rest, []Item{run(7, 1)}) {
		t.Errorf("asked after an end without it: got %v as the rest", rest)
	}
}

func BenchmarkStream(b *testing.B) {
	for name, f := range map[string]*fixture{
		"small": textFixture(b, 5000, 4000, 0),
		"large": textFixture(b, 1, 1, 20*toc.PieceSize),
	} {
		p := Make(f.img, nil, Order{})
		b.Run(name, func(b *testing.B) {
			b.SetBytes(p.Bytes)
			b.ReportAllocs()
			for b.Loop() {
				if err := Stream(b.Context(), wire.NewWriter(io.Discard), f.img, p, f.packs, Steer{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestPause: what is hot goes out before the stream waits for others, and what
// becomes urgent meanwhile does not wait.
func TestPause(t *testing.T) {
	f := textFixture(t, 40, 1000, 0)
	p := Make(f.img, nil, Order{Items: whole(9, 8, 7), Hot: 3})
	c := NewClaims(f.img, p)
	w := newWorker()
	paused := 0
	out := bundle(t, func(bw *wire.Writer) error {
		return Stream(t.Context(), bw, f.img, p, f.packs, Steer{
			Skip: c.Skip, Urgent: c.Urgent,
			Pause: func(item, _ int) func(context.Context) {
				if item < p.Hot {
					return nil
				}
				if paused++; paused > 1 {
					return nil
				}
				return func(context.Context) {
					c.Urge([]Item{{Object: 30}}, true)
					<-c.Wake()
				}
			},
		})
	})
	if err := w.read(f.img.Objects, out); err != nil {
		t.Fatal(err)
	}
	var order []uint32
	for _, it := range w.pieces {
		order = append(order, it.Object)
	}
	if len(order) < 4 || !slices.Equal(order[:4], []uint32{9, 8, 7, 30}) {
		t.Errorf("got %v, want the hot ones and then the urgent one", order)
	}
	if paused != len(p.Items)-3 {
		t.Errorf("asked %d times, want once for each that is not hot (%d)", paused, len(p.Items)-3)
	}
}
