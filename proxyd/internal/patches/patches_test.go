package patches

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/starlight-delta/starlight/proxyd/internal/blob/fsblob"
	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta/sqlstore"
	"github.com/starlight-delta/starlight/proxyd/internal/pack"
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// env is a proxyd's store with a Cache over it.
type env struct {
	*Cache
	dir   string
	store *sqlstore.Store
	blobs *fsblob.Store
	tocs  map[toc.Digest][]byte
}

func (e *env) TOC(_ context.Context, l *meta.Layer) ([]byte, error) { return e.tocs[l.DiffID], nil }

func newEnv(t testing.TB, quota int64) *env {
	t.Helper()
	dir := t.TempDir()
	store, err := sqlstore.Open(t.Context(), filepath.Join(dir, "proxyd.db"))
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := fsblob.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	e := &env{dir: dir, store: store, blobs: blobs, tocs: map[toc.Digest][]byte{}}
	e.open(quota)
	t.Cleanup(func() {
		if err := errors.Join(e.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *env) open(quota int64) {
	e.Cache = New(Config{
		Meta: e.store, TOCs: e, Blobs: e.blobs, Bytes: quota, Parallel: 2, Memory: 16 << 20,
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
}

// idle waits until all that was asked for is done.
func (e *env) idle(t testing.TB) {
	t.Helper()
	for {
		e.mu.Lock()
		n := len(e.tasks) + e.busy
		e.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal("the queue does not get empty")
		case <-time.After(time.Millisecond):
		}
	}
}

// layer stores files as a layer and returns its objects.
func (e *env) layer(t testing.TB, name string, files map[string][]byte, order ...string) []delta.Source {
	t.Helper()
	var pb bytes.Buffer
	w, err := pack.NewWriter(&pb)
	if err != nil {
		t.Fatal(err)
	}
	b := toc.NewBuilder()
	var packed []pack.Object
	var out []delta.Source
	n := uint32(0)
	key, id := "pack/"+name, toc.Digest(sha256.Sum256([]byte(name)))
	for _, path := range order {
		c := files[path]
		po, entry := pack.Object{Size: int64(len(c))}, toc.Entry{Name: path, Mode: 0o644, Size: int64(len(c)), Object: sha256.Sum256(c)}
		var sums []toc.Digest
		for p := c; len(p) > 0; p = p[min(len(p), toc.PieceSize):] {
			piece := p[:min(len(p), toc.PieceSize)]
			if err := w.Frame(pack.Encode(nil, piece)); err != nil {
				t.Fatal(err)
			}
			sums = append(sums, sha256.Sum256(piece))
			po.Frames = append(po.Frames, n)
			n++
		}
		if len(c) <= toc.PieceSize {
			sums = nil
		}
		if _, _, err := b.Add(entry, sums); err != nil {
			t.Fatal(err)
		}
		out = append(out, delta.Source{Object: &toc.Object{Digest: entry.Object, Size: entry.Size, Pieces: sums}, Layer: id, Number: len(packed)})
		packed = append(packed, po)
	}
	if err := w.Finish(packed); err != nil {
		t.Fatal(err)
	}
	bw, err := e.blobs.Create(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bw.Write(pb.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := bw.Commit(); err != nil {
		t.Fatal(err)
	}
	e.tocs[id] = b.TOC(id).Encode()
	rec := &meta.Layer{DiffID: id, TOC: sha256.Sum256(e.tocs[id]), TOCKey: "toc/" + name, PackKey: key}
	if err := e.store.PutLayer(t.Context(), rec, &meta.LayerBlob{Digest: id, Size: 1, DiffID: id}); err != nil {
		t.Fatal(err)
	}
	return out
}

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// changed returns b with something put in and some bytes set.
func changed(b []byte) []byte {
	c := append(append(bytes.Clone(b[:len(b)/3]), "something new"...), b[len(b)/3:]...)
	for i := 0; i < len(c); i += 5000 {
		c[i]++
	}
	return c
}

// made applies a patch as a worker does.
func made(t testing.TB, p delta.Patch, from, to []byte) []byte {
	t.Helper()
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	head, err := p.Head()
	if err != nil {
		t.Fatal(err)
	}
	a, err := patch.NewApplier(bytes.NewReader(from), int64(len(from)), int64(len(to)), head, patch.GoodMemory)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for i := 0; len(out) < len(to); i++ {
		b, compressed, size, err := p.Segment(i)
		if err != nil {
			t.Fatal(err)
		}
		if size == 0 {
			out = append(out, to[len(out):min(len(out)+toc.PieceSize, len(to))]...)
			continue
		}
		if compressed {
			if b, err = dec.DecodeAll(b, nil); err != nil {
				t.Fatal(err)
			}
		}
		if len(b) != size {
			t.Errorf("segment %d has %d bytes, want %d", i, len(b), size)
		}
		if out, err = a.Apply(out, i, b); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// size is what is kept of a patch.
func (e *env) size(t testing.TB, from, to delta.Source) int64 {
	t.Helper()
	rec, err := e.store.Patch(t.Context(), from.Digest, to.Digest)
	if err != nil {
		t.Fatal(err)
	}
	return rec.Size
}

// wait returns the patch once it has been asked for and made, nil if it is not made.
func (e *env) wait(t testing.TB, from, to delta.Source) delta.Patch {
	t.Helper()
	for range 2 {
		p, err := e.Patch(t.Context(), from, to)
		if err != nil {
			t.Fatal(err)
		}
		if p != nil {
			t.Cleanup(func() { _ = p.Close() })
			return p
		}
		e.idle(t)
	}
	return nil
}

func TestCache(t *testing.T) {
	e := newEnv(t, 1<<30)
	a, b := noise(1, 3<<20), noise(2, 100_000)
	half := append(changed(a[:1<<20]), noise(9, 1<<20)...) // the second piece is new
	files := map[string][]byte{"a": a, "b": b, "c": noise(3, 200_000), "d": a, "e": noise(5, MinSize-1)}
	next := map[string][]byte{"a": changed(a), "b": changed(b), "c": noise(4, 200_000), "d": half, "e": changed(noise(5, MinSize-1))}
	order := []string{"a", "b", "c", "d", "e"}
	from, to := e.layer(t, "from", files, order...), e.layer(t, "to", next, order...)
	for i, name := range order {
		p := e.wait(t, from[i], to[i])
		if name == "c" || name == "e" {
			if p != nil {
				t.Errorf("%s: there is a patch", name)
			}
			continue
		}
		if p == nil {
			t.Fatalf("%s: no patch", name)
		}
		if got := made(t, p, files[name], next[name]); !bytes.Equal(got, next[name]) {
			t.Errorf("%s: the patch makes something else", name)
		}
		if n := e.size(t, from[i], to[i]); name != "d" && n > to[i].Size/50 {
			t.Errorf("%s: %d bytes for %d", name, n, to[i].Size)
		}
	}
	if rec, err := e.store.Patch(t.Context(), from[2].Digest, to[2].Digest); err != nil || rec.Key != "" {
		t.Errorf("it is not remembered that the patch is dear: %v, %v", rec, err)
	}

	t.Run("restart", func(t *testing.T) {
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e.open(1 << 30)
		p, err := e.Patch(t.Context(), from[0], to[0])
		if err != nil || p == nil {
			t.Fatalf("got %v, %v", p, err)
		}
		_ = p.Close()
	})
	t.Run("damaged", func(t *testing.T) {
		name := filepath.Join(e.dir, "blobs", key(from[0].Digest, to[0].Digest))
		stored, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{20, len(stored) - 50, len(stored) - 1} {
			bad := bytes.Clone(stored)
			bad[at] ^= 1
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			p, err := e.Patch(t.Context(), from[0], to[0])
			if err != nil {
				t.Fatal(err)
			}
			if p != nil { // the index is well
				if _, _, _, err = p.Segment(0); !errors.Is(err, ErrDamaged) {
					t.Errorf("byte %d: got %v, want ErrDamaged", at, err)
				}
				_ = p.Close()
				continue
			}
			if e.wait(t, from[0], to[0]) == nil {
				t.Errorf("byte %d: the patch is not made again", at)
			}
		}
	})
}

// An object that is not what its pack says gives no patch.
func TestWrongObject(t *testing.T) {
	e := newEnv(t, 1<<30)
	a := noise(1, 1<<20)
	from := e.layer(t, "from", map[string][]byte{"a": a}, "a")[0]
	to := e.layer(t, "to", map[string][]byte{"a": changed(a)}, "a")[0]
	to.Digest[0]++
	if e.wait(t, from, to) != nil {
		t.Fatal("there is a patch")
	}
	if _, err := e.blobs.Stat(t.Context(), key(from.Digest, to.Digest)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was stored: %v", err)
	}
}

func TestQuota(t *testing.T) {
	e := newEnv(t, 20_000)
	const n = 12
	files, next := map[string][]byte{}, map[string][]byte{}
	var order []string
	for i := range n {
		name := fmt.Sprint("f", i)
		files[name] = noise(byte(i), 100_000)
		next[name] = append(bytes.Clone(files[name]), noise(byte(100+i), 4_000)...)
		order = append(order, name)
	}
	from, to := e.layer(t, "from", files, order...), e.layer(t, "to", next, order...)
	for i := range n {
		if e.wait(t, from[i], to[i]) == nil {
			t.Fatalf("%d is not made", i)
		}
		p, err := e.Patch(t.Context(), from[0], to[0]) // the first is always in use
		if err != nil || p == nil {
			t.Fatalf("after %d: %v", i, err)
		}
		_ = p.Close()
	}
	size, err := e.store.PatchBytes(t.Context())
	if err != nil || size > 20_000 || size < 10_000 {
		t.Errorf("%d bytes are kept, want at most 20000: %v", size, err)
	}
	if _, err := e.store.Patch(t.Context(), from[1].Digest, to[1].Digest); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("the oldest that nobody used is still there: %v", err)
	}
	if _, err := e.blobs.Stat(t.Context(), key(from[1].Digest, to[1].Digest)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its blob is still there: %v", err)
	}
}

func TestSeen(t *testing.T) {
	e := newEnv(t, 1<<30)
	lib, same, small := noise(1, 200_000), noise(2, 100_000), noise(3, 1000)
	from := e.layer(t, "v1", map[string][]byte{"app": noise(4, 50_000), "lib/libx.so.1.2.9": lib, "same": same, "small": small},
		"app", "lib/libx.so.1.2.9", "same", "small")
	to := e.layer(t, "v2", map[string][]byte{"app": changed(noise(4, 50_000)), "lib/libx.so.1.2.10": changed(lib), "same": same, "small": changed(small)},
		"app", "lib/libx.so.1.2.10", "same", "small")
	manifests := map[string]toc.Digest{}
	for _, v := range []string{"v1", "v2"} {
		id := toc.Digest(sha256.Sum256([]byte(v)))
		manifests[v] = sha256.Sum256([]byte("manifest " + v))
		img := &meta.Image{Repo: "r/x", Manifest: manifests[v], Config: id, Layers: []meta.ImageLayer{{Blob: id, DiffID: id}}}
		if err := e.store.PutImage(t.Context(), img); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []string{"v1", "v1", "v2"} {
		if err := e.Seen(t.Context(), "r/x", "latest", "linux/amd64", manifests[v]); err != nil {
			t.Fatal(err)
		}
		if v == "v1" {
			e.idle(t)
			if n, err := e.store.StalePatches(t.Context(), 1); err != nil || len(n) > 0 {
				t.Fatalf("patches of a tag that has not moved: %v, %v", n, err)
			}
		}
	}
	if err := e.Seen(t.Context(), "r/x", "latest", "linux/arm64", manifests["v1"]); err != nil {
		t.Fatal(err)
	}
	e.idle(t)
	for i, name := range []string{"same path", "number in the path"} {
		if n := e.size(t, from[i], to[i]); n == 0 || n > 2000 {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
	all, err := e.store.StalePatches(t.Context(), 100)
	if err != nil || len(all) != 2 {
		t.Errorf("%d patches, want 2: %v", len(all), err)
	}
}

func TestDisabled(t *testing.T) {
	e := newEnv(t, 0)
	a := noise(1, 100_000)
	from := e.layer(t, "from", map[string][]byte{"a": a}, "a")[0]
	to := e.layer(t, "to", map[string][]byte{"a": changed(a)}, "a")[0]
	if p, err := e.Patch(t.Context(), from, to); p != nil || err != nil || len(e.tasks) != 0 {
		t.Errorf("got %v, %v, %d tasks", p, err, len(e.tasks))
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 1, 5 << 1, 1, 2, 3, 4, 9}, int64(13))
	f.Fuzz(func(t *testing.T, ix []byte, end int64) {
		p := &stored{}
		if err := p.parse(ix, end); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		if len(p.segments) > len(ix) {
			t.Fatalf("%d segments of %d bytes", len(p.segments), len(ix))
		}
	})
}
