package retention

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/blob/fsblob"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta/sqlstore"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// world is a database and a blob store with layers of 1000 bytes each (TOC 100, pack 900).
type world struct {
	*Keeper
	t     *testing.T
	store *sqlstore.Store
	blobs blob.Store
	gone  Gone
}

func newWorld(t *testing.T, bytes int64) *world {
	t.Helper()
	store, err := sqlstore.Open(t.Context(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	blobs, err := fsblob.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, store: store, blobs: blobs, Keeper: New(Config{
		Meta: store, Blobs: blobs, Bytes: bytes, KeepFor: time.Nanosecond,
		Lock:    func(d toc.Digest) string { return d.String() },
		OfImage: func(m toc.Digest) string { return "frames/" + m.Hex() },
		Log:     slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})}
}

func digest(name string) toc.Digest { return sha256.Sum256([]byte(name)) }

func (w *world) put(key string, n int) {
	w.t.Helper()
	if err := blob.Put(w.t.Context(), w.blobs, key, make([]byte, n)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) layer(name string) {
	w.t.Helper()
	d := digest(name)
	w.put("pack/"+name, 900)
	w.put("toc/"+name, 100)
	l := &meta.Layer{DiffID: d, TOCKey: "toc/" + name, PackKey: "pack/" + name}
	if err := w.store.PutLayer(w.t.Context(), l, &meta.LayerBlob{Digest: digest("blob " + name), DiffID: d}); err != nil {
		w.t.Fatal(err)
	}
}

// image has frames of 500 bytes.
func (w *world) image(name string, layers ...string) {
	w.t.Helper()
	img := &meta.Image{Repo: "r/x", Manifest: digest(name)}
	for _, l := range layers {
		img.Layers = append(img.Layers, meta.ImageLayer{Blob: digest("blob " + l), DiffID: digest(l)})
	}
	if err := w.store.PutImage(w.t.Context(), img); err != nil {
		w.t.Fatal(err)
	}
	w.put("frames/"+digest(name).Hex(), 500)
}

func (w *world) sweep() {
	w.t.Helper()
	w.gone = Gone{}
	if err := w.Keeper.sweep(w.t.Context(), func(g Gone) { w.gone = g }); err != nil {
		w.t.Fatal(err)
	}
}

// left are the layers that are there, which must be whole.
func (w *world) left(names ...string) (left []string) {
	w.t.Helper()
	for _, name := range names {
		_, err := w.store.Layer(w.t.Context(), digest(name))
		there := err == nil
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			w.t.Fatal(err)
		}
		for _, key := range []string{"pack/" + name, "toc/" + name} {
			if _, err := w.blobs.Stat(w.t.Context(), key); (err == nil) != there {
				w.t.Errorf("%s: there is a record: %v, but its blob: %v", key, there, err)
			}
		}
		if there {
			left = append(left, name)
		}
	}
	return left
}

func TestSweep(t *testing.T) {
	all := []string{"base", "a", "b", "c"}
	for _, tc := range []struct {
		bytes int64
		touch []string // after the layers were put, in this order
		hold  []string
		left  []string
		gone  []string // images that are not complete any more
	}{
		{bytes: 0, left: all},
		{bytes: 5500, left: all}, // 4 layers and 3 images
		{bytes: 5499, left: []string{"a", "b", "c"}, gone: []string{"A", "B", "C"}},                   // the oldest is the base
		{bytes: 5499, touch: []string{"base"}, left: []string{"base", "b", "c"}, gone: []string{"A"}}, // not any more
		{bytes: 3000, touch: []string{"base", "a"}, left: []string{"base", "a"}, gone: []string{"B", "C"}},
		{bytes: 1, touch: []string{"base"}, hold: []string{"b"}, left: nil, gone: []string{"A", "B", "C"}},
	} {
		t.Run(fmt.Sprint(tc.bytes, tc.touch), func(t *testing.T) {
			w := newWorld(t, tc.bytes)
			for _, l := range all {
				w.layer(l)
				time.Sleep(time.Millisecond)
			}
			w.image("A", "base", "a")
			w.image("B", "base", "b")
			w.image("C", "base", "c")
			for _, l := range tc.touch {
				w.Hold([]toc.Digest{digest(l)})()
				if err := w.note(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
			w.sweep()
			if got := w.left(all...); !slices.Equal(got, tc.left) {
				t.Errorf("got left %q, want %q", got, tc.left)
			}
			for _, image := range []string{"A", "B", "C"} {
				want := slices.Contains(tc.gone, image)
				if got := slices.Contains(w.gone.Manifests, digest(image)); got != want {
					t.Errorf("image %s is gone: %v, want %v", image, got, want)
				}
				if _, err := w.blobs.Stat(t.Context(), "frames/"+digest(image).Hex()); (err != nil) != want {
					t.Errorf("frames of image %s: %v, want them gone: %v", image, err, want)
				}
			}
			if got := len(w.gone.Layers); got != len(all)-len(tc.left) {
				t.Errorf("told of %d layers, want %d", got, len(all)-len(tc.left))
			}
		})
	}
}

// What is held stays, however much there is and however long that takes, and for some
// time after it was released.
func TestHeldLayersStay(t *testing.T) {
	w := newWorld(t, 1)
	w.cfg.KeepFor = 100 * time.Millisecond
	w.layer("held")
	w.layer("other")
	release := w.Hold([]toc.Digest{digest("held"), digest("unknown")})
	time.Sleep(150 * time.Millisecond)
	w.sweep()
	if got := w.left("held", "other"); !slices.Equal(got, []string{"held"}) {
		t.Fatalf("got left %q, want what is held", got)
	}
	time.Sleep(150 * time.Millisecond)
	release()
	w.sweep()
	if got := w.left("held"); len(got) != 1 {
		t.Fatal("what was just released is removed")
	}
	time.Sleep(150 * time.Millisecond)
	w.sweep()
	if got := w.left("held"); len(got) != 0 {
		t.Fatal("what nobody uses is kept")
	}
	if len(w.held)+len(w.used) > 0 {
		t.Errorf("got %v held, %v used, want nothing remembered", w.held, w.used)
	}
}

// A crash between the record and the files leaves nothing behind, and takes nothing from
// who ingested the layer again.
func TestSweepGoesOnAfterCrash(t *testing.T) {
	w := newWorld(t, 0)
	for _, l := range []string{"gone", "again"} {
		w.layer(l)
		if removed, err := w.store.RemoveLayer(t.Context(), digest(l), time.Now().Add(time.Second)); err != nil || !removed {
			t.Fatalf("remove %s: %v, %v", l, removed, err)
		}
	}
	w.layer("again")
	w.sweep()
	if got := w.left("gone", "again"); !slices.Equal(got, []string{"again"}) {
		t.Errorf("got left %q, want what was ingested again", got)
	}
}

// Sweeps of several replicas and ingests at the same time leave whole layers.
func TestSweepsBesideIngest(t *testing.T) {
	w := newWorld(t, 1)
	other := New(w.cfg.with(prometheus.NewRegistry()))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	done := make(chan error, 2)
	for _, k := range []*Keeper{w.Keeper, other} {
		go func() {
			for ctx.Err() == nil {
				if err := k.sweep(ctx, func(Gone) {}); err != nil && ctx.Err() == nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprint("l", i%3)
		unlock, err := w.store.Lock(ctx, w.cfg.Lock(digest(name)))
		if err != nil {
			break
		}
		w.layer(name)
		unlock()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	w.cfg.Bytes = 0
	w.sweep()
	w.left("l0", "l1", "l2")
}

func (c Config) with(r prometheus.Registerer) Config {
	c.Metrics = r
	return c
}
