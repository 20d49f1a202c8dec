// Package metatest is the conformance suite of meta.Store, and the Postgres
// server that it runs on.
package metatest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Run runs the suite. open returns a new, empty store.
func Run(t *testing.T, open func(*testing.T) meta.Store) {
	for _, tc := range []struct {
		name string
		f    func(*testing.T, meta.Store)
	}{
		{"Layers", testLayers},
		{"LayerOfSeveralBlobs", testLayerOfSeveralBlobs},
		{"DeleteLayer", testDeleteLayer},
		{"Retention", testRetention},
		{"Images", testImages},
		{"ImageNeedsItsLayers", testImageNeedsItsLayers},
		{"ImageReplace", testImageReplace},
		{"ManyLayers", testManyLayers},
		{"Documents", testDocuments},
		{"DocumentsOfRepositories", testDocumentsOfRepositories},
		{"Tags", testTags},
		{"Resolved", testResolved},
		{"Patches", testPatches},
		{"Orders", testOrders},
		{"Traces", testTraces},
		{"Profiles", testProfiles},
		{"Lock", testLock},
		{"LockCancelled", testLockCancelled},
		{"LockMany", testLockMany},
		{"Concurrent", testConcurrent},
		{"Ping", testPing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			tc.f(t, s)
		})
	}
}

func digest(s string) toc.Digest { return sha256.Sum256([]byte(s)) }

func layer(name string) (*meta.Layer, *meta.LayerBlob) {
	return &meta.Layer{
			DiffID: digest(name), TOC: digest("toc " + name), TOCKey: "toc/" + name, PackKey: "pack/" + name,
			Entries: 7, Objects: 5, Bytes: 1 << 40,
		},
		&meta.LayerBlob{Digest: digest("blob " + name), Size: 1 << 33, DiffID: digest(name)}
}

func putLayer(t *testing.T, s meta.Store, name string) (*meta.Layer, *meta.LayerBlob) {
	t.Helper()
	l, b := layer(name)
	if err := s.PutLayer(t.Context(), l, b); err != nil {
		t.Fatal(err)
	}
	return l, b
}

func image(repo, manifest string, layers ...string) *meta.Image {
	img := &meta.Image{Repo: repo, Manifest: digest(manifest), Config: digest("config " + manifest)}
	for _, l := range layers {
		img.Layers = append(img.Layers, meta.ImageLayer{Blob: digest("blob " + l), DiffID: digest(l)})
	}
	return img
}

// want checks the result of a lookup.
func want[T any](t *testing.T, what string, got T, err error, want T) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: (-want +got)\n%s", what, d)
	}
}

func wantNotFound(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("%s: got %v, want ErrNotFound", what, err)
	}
}

func testLayers(t *testing.T, s meta.Store) {
	ctx := t.Context()
	_, err := s.Layer(ctx, digest("a"))
	wantNotFound(t, "Layer", err)
	_, err = s.LayerBlob(ctx, digest("blob a"))
	wantNotFound(t, "LayerBlob", err)
	l, b := putLayer(t, s, "a")
	gotL, err := s.Layer(ctx, l.DiffID)
	want(t, "Layer", gotL, err, l)
	gotB, err := s.LayerBlob(ctx, b.Digest)
	want(t, "LayerBlob", gotB, err, b)

	l.TOC, l.TOCKey, l.PackKey, l.Entries, l.Objects, l.Bytes = digest("new"), "x", "y", 0, 0, 0
	if err := s.PutLayer(ctx, l, b); err != nil {
		t.Fatal(err)
	}
	gotL, err = s.Layer(ctx, l.DiffID)
	want(t, "replaced Layer", gotL, err, l)
	if err := s.PutLayer(ctx, l, &meta.LayerBlob{Digest: digest("z"), DiffID: digest("other")}); err == nil {
		t.Error("PutLayer with the blob of another layer succeeded")
	}
}

func testLayerOfSeveralBlobs(t *testing.T, s meta.Store) {
	l, gz := putLayer(t, s, "a")
	zst := &meta.LayerBlob{Digest: digest("zstd a"), Size: 3, DiffID: l.DiffID}
	if err := s.PutLayer(t.Context(), l, zst); err != nil {
		t.Fatal(err)
	}
	for _, b := range []*meta.LayerBlob{gz, zst} {
		got, err := s.LayerBlob(t.Context(), b.Digest)
		want(t, "LayerBlob", got, err, b)
	}
}

func testDeleteLayer(t *testing.T, s meta.Store) {
	ctx := t.Context()
	l, b := putLayer(t, s, "a")
	other, otherBlob := putLayer(t, s, "b")
	for _, img := range []*meta.Image{image("r/x", "both", "a", "b"), image("r/x", "b only", "b"), image("r/y", "a only", "a")} {
		if err := s.PutImage(ctx, img); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeleteLayer(ctx, l.DiffID); err != nil {
		t.Fatal(err)
	}
	_, err := s.Layer(ctx, l.DiffID)
	wantNotFound(t, "Layer", err)
	_, err = s.LayerBlob(ctx, b.Digest)
	wantNotFound(t, "LayerBlob", err)
	_, err = s.Image(ctx, "r/x", digest("both"))
	wantNotFound(t, "Image with the layer", err)
	_, err = s.Image(ctx, "r/y", digest("a only"))
	wantNotFound(t, "Image with the layer", err)
	got, err := s.Layer(ctx, other.DiffID)
	want(t, "other Layer", got, err, other)
	gotB, err := s.LayerBlob(ctx, otherBlob.Digest)
	want(t, "other LayerBlob", gotB, err, otherBlob)
	if _, err := s.Image(ctx, "r/x", digest("b only")); err != nil {
		t.Errorf("Image without the layer: %v", err)
	}
	if err := s.DeleteLayer(ctx, l.DiffID); err != nil {
		t.Errorf("DeleteLayer of what is not there: %v", err)
	}
}

func testRetention(t *testing.T, s meta.Store) {
	ctx := t.Context()
	began := time.Now()
	a, _ := putLayer(t, s, "a")
	b, bBlob := putLayer(t, s, "b")
	for _, img := range []*meta.Image{image("r/x", "both", "a", "b"), image("r/y", "both", "a", "b"), image("r/x", "a twice", "a", "a")} {
		if err := s.PutImage(ctx, img); err != nil {
			t.Fatal(err)
		}
	}
	uses := func() map[toc.Digest]meta.LayerUse {
		t.Helper()
		all, err := s.LayerUses(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.IsSortedFunc(all, func(x, y meta.LayerUse) int { return x.Used.Compare(y.Used) }) {
			t.Errorf("got %v, want those first that were not of use for longest", all)
		}
		m := map[toc.Digest]meta.LayerUse{}
		for _, u := range all {
			m[u.DiffID] = u
		}
		return m
	}
	got := uses()
	if u := got[a.DiffID]; len(got) != 2 || u.TOCKey != a.TOCKey || u.PackKey != a.PackKey || len(u.Manifests) != 2 {
		t.Errorf("got %+v, want both layers with their keys, and two images of the first", got)
	}
	if u := got[b.DiffID]; u.Used.Before(began.Add(-time.Second)) || !slices.Equal(u.Manifests, []toc.Digest{digest("both")}) {
		t.Errorf("got %+v, want a layer that was of use when it was put, of one manifest", u)
	}

	later := began.Add(time.Hour).Truncate(time.Microsecond)
	if err := s.TouchLayers(ctx, []toc.Digest{b.DiffID, digest("not there"), a.DiffID}, later); err != nil {
		t.Fatal(err)
	}
	if err := s.TouchLayers(ctx, []toc.Digest{a.DiffID}, began); err != nil {
		t.Fatal(err)
	}
	if u := uses()[a.DiffID]; !u.Used.Equal(later) {
		t.Errorf("got used at %v, want the latest use (%v)", u.Used, later)
	}
	if removed, err := s.RemoveLayer(ctx, b.DiffID, later); removed || err != nil {
		t.Errorf("got removed %v (%v), want a layer kept that was of use since", removed, err)
	}
	if removed, err := s.RemoveLayer(ctx, digest("not there"), later); removed || err != nil {
		t.Errorf("got removed %v (%v) of what is not there", removed, err)
	}
	if removed, err := s.RemoveLayer(ctx, b.DiffID, later.Add(time.Second)); !removed || err != nil {
		t.Errorf("got removed %v (%v), want a layer removed that was of no use since", removed, err)
	}
	_, err := s.Layer(ctx, b.DiffID)
	wantNotFound(t, "Layer", err)
	_, err = s.Image(ctx, "r/y", digest("both"))
	wantNotFound(t, "Image with the layer", err)
	if _, err := s.Image(ctx, "r/x", digest("a twice")); err != nil {
		t.Errorf("Image without the layer: %v", err)
	}
	gone, err := s.RemovedLayers(ctx)
	want(t, "RemovedLayers", gone, err, []meta.LayerUse{{DiffID: b.DiffID, TOCKey: b.TOCKey, PackKey: b.PackKey}})

	// What is put again has its files again.
	if err := s.PutLayer(ctx, b, bBlob); err != nil {
		t.Fatal(err)
	}
	gone, err = s.RemovedLayers(ctx)
	want(t, "RemovedLayers", gone, err, nil)
	if removed, err := s.RemoveLayer(ctx, b.DiffID, later); !removed || err != nil {
		t.Errorf("got removed %v (%v), want it removed again", removed, err)
	}
	if err := s.ForgetRemoved(ctx, b.DiffID); err != nil {
		t.Fatal(err)
	}
	gone, err = s.RemovedLayers(ctx)
	want(t, "RemovedLayers", gone, err, nil)
}

func testImages(t *testing.T, s meta.Store) {
	ctx := t.Context()
	putLayer(t, s, "a")
	putLayer(t, s, "b")
	for _, img := range []*meta.Image{
		image("r/x", "none"), // an image without layers
		image("r/x", "one", "a"),
		image("r/x", "twice", "a", "b", "a"), // the same layer twice
	} {
		_, err := s.Image(ctx, img.Repo, img.Manifest)
		wantNotFound(t, "Image", err)
		for range 2 {
			if err := s.PutImage(ctx, img); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.Image(ctx, img.Repo, img.Manifest)
		want(t, "Image", got, err, img)
		_, err = s.Image(ctx, "r/y", img.Manifest)
		wantNotFound(t, "Image in another repository", err)
	}
}

func testImageNeedsItsLayers(t *testing.T, s meta.Store) {
	ctx := t.Context()
	putLayer(t, s, "a")
	putLayer(t, s, "b")
	swapped := image("r/x", "swapped", "a")
	swapped.Layers[0].DiffID = digest("b")
	for _, img := range []*meta.Image{image("r/x", "missing", "a", "c"), swapped} {
		wantNotFound(t, "PutImage", s.PutImage(ctx, img))
		_, err := s.Image(ctx, img.Repo, img.Manifest)
		wantNotFound(t, "Image after it was refused", err)
	}
}

func testImageReplace(t *testing.T, s meta.Store) {
	putLayer(t, s, "a")
	putLayer(t, s, "b")
	if err := s.PutImage(t.Context(), image("r/x", "m", "a", "b")); err != nil {
		t.Fatal(err)
	}
	img := image("r/x", "m", "b")
	img.Config = digest("new config")
	if err := s.PutImage(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	got, err := s.Image(t.Context(), img.Repo, img.Manifest)
	want(t, "Image", got, err, img)
}

func testManyLayers(t *testing.T, s meta.Store) {
	var names []string
	for i := range 127 {
		names = append(names, fmt.Sprint(i))
		putLayer(t, s, names[i])
	}
	img := image("r/x", "m", names...)
	if err := s.PutImage(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	got, err := s.Image(t.Context(), img.Repo, img.Manifest)
	want(t, "Image", got, err, img)
}

func testDocuments(t *testing.T, s meta.Store) {
	ctx := t.Context()
	for _, content := range [][]byte{[]byte("{}"), {}, bytes.Repeat([]byte{0, 0xff, '\n'}, 1<<20)} {
		d := &meta.Document{Digest: sha256.Sum256(content), MediaType: "application/x", Bytes: content}
		_, err := s.Document(ctx, "r/x", d.Digest)
		wantNotFound(t, "Document", err)
		for range 2 {
			if err := s.PutDocument(ctx, "r/x", d); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.Document(ctx, "r/x", d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if got.Digest != d.Digest || got.MediaType != d.MediaType || !bytes.Equal(got.Bytes, d.Bytes) {
			t.Errorf("Document of %d bytes came back as %q with %d bytes", len(content), got.MediaType, len(got.Bytes))
		}
	}
}

func testDocumentsOfRepositories(t *testing.T, s meta.Store) {
	ctx := t.Context()
	d := &meta.Document{Digest: digest("x"), MediaType: "application/x", Bytes: []byte("x")}
	if err := s.PutDocument(ctx, "r/x", d); err != nil {
		t.Fatal(err)
	}
	_, err := s.Document(ctx, "r/y", d.Digest)
	wantNotFound(t, "Document in another repository", err)
	other := *d
	other.MediaType = "application/y"
	if err := s.PutDocument(ctx, "r/y", &other); err != nil {
		t.Fatal(err)
	}
	got, err := s.Document(ctx, "r/x", d.Digest)
	want(t, "Document", got, err, d)
	got, err = s.Document(ctx, "r/y", d.Digest)
	want(t, "Document", got, err, &other)
}

func testTags(t *testing.T, s meta.Store) {
	ctx := t.Context()
	now := time.UnixMicro(1_700_000_000_123_456)
	b := meta.Tag{Repo: "r/x", Name: "b", Digest: digest("1"), Seen: now}
	a := meta.Tag{Repo: "r/x", Name: "a", Digest: digest("2"), Seen: now}
	for _, tag := range []meta.Tag{b, a, {Repo: "r/y", Name: "c", Digest: digest("3"), Seen: now}} {
		if err := s.PutTag(ctx, tag); err != nil {
			t.Fatal(err)
		}
	}
	b.Digest, b.Seen = digest("4"), now.Add(time.Hour)
	if err := s.PutTag(ctx, b); err != nil {
		t.Fatal(err)
	}
	got, err := s.Tags(ctx, "r/x")
	want(t, "Tags", got, err, []meta.Tag{a, b})
	got, err = s.Tags(ctx, "r/z")
	want(t, "Tags of an unknown repository", got, err, nil)
}

func testResolved(t *testing.T, s meta.Store) {
	ctx := t.Context()
	_, err := s.Resolved(ctx, "r/x", "a", "linux/amd64")
	wantNotFound(t, "Resolved", err)
	for _, r := range []meta.Resolved{
		{Repo: "r/x", Tag: "a", Platform: "linux/amd64", Manifest: digest("1")},
		{Repo: "r/x", Tag: "a", Platform: "linux/arm64", Manifest: digest("2")},
		{Repo: "r/x", Tag: "a", Platform: "linux/amd64", Manifest: digest("3")},
	} {
		if err := s.PutResolved(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Resolved(ctx, "r/x", "a", "linux/amd64")
	want(t, "Resolved", got, err, digest("3"))
	got, err = s.Resolved(ctx, "r/x", "a", "linux/arm64")
	want(t, "Resolved for another platform", got, err, digest("2"))
	_, err = s.Resolved(ctx, "r/y", "a", "linux/amd64")
	wantNotFound(t, "Resolved in another repository", err)
}

func testPatches(t *testing.T, s meta.Store) {
	ctx := t.Context()
	now := time.UnixMicro(1_700_000_000_123_456)
	_, err := s.Patch(ctx, digest("a"), digest("b"))
	wantNotFound(t, "Patch", err)
	n, err := s.PatchBytes(ctx)
	want(t, "PatchBytes of none", n, err, int64(0))
	ab := meta.Patch{Old: digest("a"), New: digest("b"), Key: "k/1", Size: 100, Used: now}
	bc := meta.Patch{Old: digest("b"), New: digest("c"), Key: "k/2", Size: 10, Used: now.Add(time.Second)}
	none := meta.Patch{Old: digest("c"), New: digest("d"), Used: now.Add(2 * time.Second)}
	for _, p := range []meta.Patch{none, bc, ab} {
		if err := s.PutPatch(ctx, &p); err != nil {
			t.Fatal(err)
		}
	}
	n, err = s.PatchBytes(ctx)
	want(t, "PatchBytes", n, err, int64(110))
	stale, err := s.StalePatches(ctx, 2)
	want(t, "StalePatches", stale, err, []meta.Patch{ab, bc})
	ab.Used = now.Add(time.Hour)
	if err := s.PutPatch(ctx, &ab); err != nil {
		t.Fatal(err)
	}
	got, err := s.Patch(ctx, ab.Old, ab.New)
	want(t, "Patch that was used", got, err, &ab)
	stale, err = s.StalePatches(ctx, 10)
	want(t, "StalePatches after one was used", stale, err, []meta.Patch{bc, none, ab})
	if err := s.DeletePatch(ctx, bc.Old, bc.New); err != nil {
		t.Fatal(err)
	}
	_, err = s.Patch(ctx, bc.Old, bc.New)
	wantNotFound(t, "Patch that was deleted", err)
}

func testOrders(t *testing.T, s meta.Store) {
	ctx := t.Context()
	_, err := s.Order(ctx, digest("m"), "static")
	wantNotFound(t, "Order", err)
	for _, order := range []string{"one", "", "other\x00\xff"} {
		if err := s.PutOrder(ctx, digest("m"), "static", []byte(order)); err != nil {
			t.Fatal(err)
		}
		got, err := s.Order(ctx, digest("m"), "static")
		want(t, "Order", string(got), err, order)
	}
	if err := s.PutOrder(ctx, digest("m"), "trace", nil); err != nil {
		t.Fatal(err)
	}
	got, err := s.Order(ctx, digest("m"), "trace")
	want(t, "Order put as nil", len(got), err, 0)
	_, err = s.Order(ctx, digest("n"), "static")
	wantNotFound(t, "Order of another manifest", err)
}

func testLock(t *testing.T, s meta.Store) {
	ctx := t.Context()
	counter, inside := 0, 0
	g, ctx := errgroup.WithContext(ctx)
	for range 8 {
		g.Go(func() error {
			for range 20 {
				unlock, err := s.Lock(ctx, "counter")
				if err != nil {
					return err
				}
				inside++
				if inside != 1 {
					t.Error("two hold the lock")
				}
				counter++
				inside--
				unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if counter != 160 {
		t.Errorf("counter = %d, want 160", counter)
	}
}

func testLockCancelled(t *testing.T, s meta.Store) {
	unlock, err := s.Lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(ctx, "x"); err == nil {
		t.Error("the lock was given twice")
	}
	if other, err := s.Lock(t.Context(), "y"); err != nil {
		t.Errorf("another name: %v", err)
	} else {
		other()
	}
	unlock()
	unlock2, err := s.Lock(t.Context(), "x")
	if err != nil {
		t.Fatalf("after a waiter gave up: %v", err)
	}
	unlock2()
}

func testLockMany(t *testing.T, s meta.Store) {
	// Locks must not use up what other calls need.
	for i := range 40 {
		unlock, err := s.Lock(t.Context(), fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
	}
	putLayer(t, s, "a")
}

func testConcurrent(t *testing.T, s meta.Store) {
	g, ctx := errgroup.WithContext(t.Context())
	for i := range 8 {
		g.Go(func() error {
			for j := range 10 {
				// Every layer is put by two goroutines.
				name := fmt.Sprint(i/2, " ", j)
				l, b := layer(name)
				if err := s.PutLayer(ctx, l, b); err != nil {
					return err
				}
				if err := s.PutImage(ctx, image(fmt.Sprint("r/", i), name, name)); err != nil {
					return err
				}
				if _, err := s.Image(ctx, fmt.Sprint("r/", i), digest(name)); err != nil {
					return err
				}
				doc := &meta.Document{Digest: digest(name), MediaType: "x", Bytes: []byte(name)}
				if err := s.PutDocument(ctx, "r", doc); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func testPing(t *testing.T, s meta.Store) {
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}
