package engine

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// fsckKinds runs Fsck and returns the kinds of what it found, sorted.
func fsckKinds(t *testing.T, e *Engine, repair bool) (kinds []string) {
	t.Helper()
	sum, err := e.Fsck(t.Context(), repair, func(p FsckProgress) error {
		if p.Problem != nil {
			t.Logf("%+v", *p.Problem)
			kinds = append(kinds, p.Problem.Kind)
			if p.Problem.Repaired != repair {
				t.Errorf("%+v, asked to repair: %v", *p.Problem, repair)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if int(sum.Problems) != len(kinds) || sum.Layers == 0 || sum.Images == 0 {
		t.Errorf("summary %+v for %d problems", sum, len(kinds))
	}
	slices.Sort(kinds)
	return kinds
}

func TestFsckFindsAndRepairs(t *testing.T) {
	flip := func(t *testing.T, path string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	some := func(e *Engine) string {
		all := e.objects.All()
		slices.SortFunc(all, func(a, b toc.Digest) int { return slices.Compare(a[:], b[:]) })
		return filepath.Join(e.objects.Dir(), all[len(all)/2].Path())
	}
	for name, tc := range map[string]struct {
		hurt   func(*testing.T, *Engine, *image)
		kinds  []string
		mended bool // without another pull
	}{
		"nothing":          {func(*testing.T, *Engine, *image) {}, nil, true},
		"flipped bit":      {func(t *testing.T, e *Engine, _ *image) { flip(t, some(e)) }, []string{ProblemObject}, true},
		"lost object":      {func(t *testing.T, e *Engine, _ *image) { remove(t, some(e)) }, []string{ProblemObject}, true},
		"tree":             {func(t *testing.T, e *Engine, i *image) { flip(t, e.treePath(i.top().id)) }, []string{ProblemTree}, true},
		"toc":              {func(t *testing.T, e *Engine, i *image) { flip(t, e.tocPath(i.layers[0].diffID)) }, []string{ProblemTOC}, false},
		"stray in objects": {func(t *testing.T, e *Engine, _ *image) { write(t, filepath.Join(e.objects.Dir(), "00", "x")) }, []string{ProblemOrphan}, true},
		"toc of nothing":   {func(t *testing.T, e *Engine, _ *image) { write(t, e.tocPath(toc.Digest{1})) }, []string{ProblemOrphan}, true},
		"marked complete": {func(t *testing.T, e *Engine, i *image) {
			d := i.layers[0].objects[0].Digest
			if err := e.objects.Drop(d); err != nil {
				t.Fatal(err)
			}
		}, []string{ProblemImage}, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newFakeProxy(t)
			img := newTestImage(t, manyFiles(1, 50), files{"top": "hello"})
			p.add(testRef, img)
			e := openEngine(t, t.TempDir(), p)
			got := pull(t, e, testRef)
			wait(t, e, testRef)
			mountRoot(t, e, got)
			tc.hurt(t, e, e.images[img.digest()])
			if kinds := fsckKinds(t, e, false); !slices.Equal(kinds, tc.kinds) {
				t.Errorf("found %v, want %v", kinds, tc.kinds)
			}
			if kinds := fsckKinds(t, e, true); !slices.Equal(kinds, tc.kinds) {
				t.Errorf("repaired %v, want %v", kinds, tc.kinds)
			}
			if !tc.mended {
				pull(t, e, testRef)
			}
			wait(t, e, testRef)
			check(t, e, img)
			if kinds := fsckKinds(t, e, false); len(kinds) > 0 {
				t.Errorf("left after the repair: %v", kinds)
			}
		})
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestFsckEndsWithItsReport(t *testing.T) {
	p := newFakeProxy(t)
	p.add(testRef, newTestImage(t, manyFiles(1, 50)))
	e := openEngine(t, t.TempDir(), p)
	pull(t, e, testRef)
	wait(t, e, testRef)
	enough := errors.New("enough")
	if _, err := e.Fsck(t.Context(), false, func(FsckProgress) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
}

func TestCollectTellsWhatItFreed(t *testing.T) {
	p := newFakeProxy(t)
	img := newTestImage(t, manyFiles(1, 20))
	p.add(testRef, img)
	e := openEngine(t, t.TempDir(), p)
	if _, err := e.Collect(t.Context()); !errdefs.IsNotImplemented(err) {
		t.Errorf("got %v without a snapshotter", err)
	}
	got := pull(t, e, testRef)
	wait(t, e, testRef)
	var live []digest.Digest
	e.OnCollect(func(ctx context.Context) error { return e.Sweep(ctx, live) })
	got.Release()
	before, _ := e.objects.Usage()
	c, err := e.Collect(t.Context())
	if want := (Collected{1, int64(len(img.contents)), before}); err != nil || c != want {
		t.Errorf("got %+v, %v, want %+v", c, err, want)
	}
	usage, err := e.DiskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range usage {
		if u.Category != "state" && u.Category != "lazyfs" && u.Files != 0 {
			t.Errorf("after all was collected: %+v", u)
		}
	}
}

func TestMissingFiles(t *testing.T) {
	p := newFakeProxy(t)
	img := newTestImage(t, files{"a/first": "1", "b": "two", "c": "3"})
	p.add(testRef, img)
	two := img.layers[0].Objects[1].Digest
	hold := make(chan struct{})
	p.set(func(r *http.Request, o toc.Object, b []byte) ([]byte, error) {
		if o.Digest == two {
			select {
			case <-hold:
			case <-r.Context().Done():
			}
		}
		return b, nil
	})
	e := openEngine(t, t.TempDir(), p)
	pull(t, e, testRef)
	for e.Status(testRef)[0].ObjectsLocal < 1 {
		time.Sleep(time.Millisecond)
	}
	names, n, bytes, err := e.MissingFiles(t.Context(), "default", testRef, 1)
	if err != nil || !slices.Equal(names, []string{"/b"}) || n != 2 || bytes != 4 {
		t.Errorf("got %q, %d files of %d bytes, %v", names, n, bytes, err)
	}
	close(hold)
	wait(t, e, testRef)
	if names, n, _, err := e.MissingFiles(t.Context(), "default", testRef, 10); err != nil || len(names) != 0 || n != 0 {
		t.Errorf("when complete: %q, %d, %v", names, n, err)
	}
}
