package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins/internal/erofsimg"
	"github.com/starlight-delta/starlight/plugins/internal/lazyfs"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == lazyfs.ChildCommand {
		os.Exit(lazyfs.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

const testRef = "registry.test/app:1"

func openEngine(t *testing.T, root string, proxies ...*fakeProxy) *Engine {
	t.Helper()
	c := Config{Root: root, ReadTimeout: 5 * time.Second, HeaderTimeout: 2 * time.Second}
	for _, p := range proxies {
		c.Proxies = append(c.Proxies, Proxy{Address: p.URL, Registries: []string{"registry.test"}})
	}
	return openConfig(t, c)
}

func openConfig(t *testing.T, c Config) *Engine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	e, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeEngine(t, e, true) })
	return e
}

// closeEngine closes e once, and with last unmounts what outlives it.
func closeEngine(t *testing.T, e *Engine, last bool) {
	t.Helper()
	e.mu.Lock()
	chains := e.chains
	e.chains = nil
	e.mu.Unlock()
	if chains == nil {
		return
	}
	lazy := e.lazy
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range chains {
		if err := e.dropTree(c); err != nil {
			t.Error(err)
		}
	}
	if last && lazy != nil {
		if err := lazy.Shutdown(); err != nil {
			t.Error(err)
		}
	}
}

func (e *Engine) testPull(ctx context.Context, ref string) (*Pull, error) {
	return e.Pull(ctx, PullRequest{Namespace: "default", Ref: ref, Platform: platforms.MustParse("linux/amd64")})
}

func pull(t *testing.T, e *Engine, ref string) *Pull {
	t.Helper()
	p, err := e.testPull(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Release)
	return p
}

func wait(t *testing.T, e *Engine, ref string) ImageStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var last ImageStatus
	if err := e.Wait(ctx, ref, func(s ImageStatus) error { last = s; return nil }); err != nil {
		t.Fatalf("wait for %s: %v (%+v)", ref, err, last)
	}
	return last
}

// check compares what is in the store with the image.
func check(t *testing.T, e *Engine, img *testImage) {
	t.Helper()
	for d, want := range img.contents {
		got, err := os.ReadFile(filepath.Join(e.objects.Dir(), d.Path()))
		if err != nil {
			t.Error(err)
		} else if string(got) != want {
			t.Errorf("object %s has wrong contents", d)
		}
	}
}

// mountRoot mounts the root file system of a pulled image as a container would.
func mountRoot(t *testing.T, e *Engine, p *Pull) string {
	t.Helper()
	e.mu.Lock()
	d, _ := toc.ParseDigest(p.Manifest.Digest.String())
	id := e.images[d].top().id
	e.mu.Unlock()
	l, err := e.Lower(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	opts := "lowerdir=" + l.Stacking.Lowerdir([]string{l.Metadata}, l.Data) + ",metacopy=on,redirect_dir=on"
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, opts); err != nil {
		t.Fatalf("mount %s: %v", opts, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func random(seed uint64, n int) string {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return string(b)
}

func manyFiles(seed uint64, n int) files {
	f := files{"big": random(seed+1000, 3<<20+17), "empty": ""}
	for i := range n {
		f[fmt.Sprintf("dir%d/file%d", i%7, i)] = random(seed+uint64(i), 100+i)
	}
	return f
}

func TestPullBringsEverything(t *testing.T) {
	p := newFakeProxy(t)
	img := newTestImage(t, manyFiles(1, 300), files{"top": "hello"})
	p.add(testRef, img)
	e := openEngine(t, t.TempDir(), p)
	got := pull(t, e, testRef)
	for _, d := range []digest.Digest{got.Target.Digest, got.Manifest.Digest, got.Config.Digest} {
		if b, ok := got.Blob(d); !ok || digest.FromBytes(b) != d {
			t.Errorf("blob %s is not there", d)
		}
	}
	root := mountRoot(t, e, got)
	if b, err := os.ReadFile(filepath.Join(root, "top")); err != nil || string(b) != "hello" {
		t.Errorf("got %q, %v", b, err)
	}
	s := wait(t, e, testRef)
	check(t, e, img)
	if s.Mode != ModeDelta || s.ObjectsLocal != s.Objects || s.BytesLocal != s.Bytes || s.WireBytes == 0 || s.RoundTrips < 1 {
		t.Errorf("status %+v", s)
	}
	if n := len(got.Layers); n != 2 {
		t.Errorf("got %d layers", n)
	}
	if _, ok := e.Virtual(got.Layers[0].Digest); !ok {
		t.Error("layer is not virtual")
	}
}

func TestUpdateBringsOnlyWhatIsNew(t *testing.T) {
	p := newFakeProxy(t)
	base, changed := manyFiles(1, 300), manyFiles(1, 300)
	changed["dir1/file1"] = "changed"
	changed["moved"] = base["dir2/file2"]
	delete(changed, "dir2/file2")
	p.add(testRef, newTestImage(t, base))
	next := newTestImage(t, changed, files{"app": "2"})
	p.add("registry.test/app:2", next)
	e := openEngine(t, t.TempDir(), p)
	pull(t, e, testRef)
	wait(t, e, testRef)
	before, _ := p.counts()
	pull(t, e, "registry.test/app:2")
	wait(t, e, "registry.test/app:2")
	check(t, e, next)
	if after, _ := p.counts(); after-before != 2 {
		t.Errorf("%d objects were sent, want 2", after-before)
	}
}

func TestReaderGetsAtOnceWhatIsFarBack(t *testing.T) {
	for name, stacking := range map[string]erofsimg.Stacking{"data-only layers": erofsimg.DataOnly, "ordinary layers": erofsimg.Ordinary} {
		t.Run(name, func(t *testing.T) { testFarBack(t, stacking) })
	}
}

func testFarBack(t *testing.T, stacking erofsimg.Stacking) {
	p := newFakeProxy(t)
	img := newTestImage(t, manyFiles(1, 50), files{"zz-last": "needed now"})
	p.add(testRef, img)
	hold := make(chan struct{})
	p.set(func(r *http.Request, _ toc.Object, b []byte) ([]byte, error) {
		if r.URL.Path == wire.RouteDelta {
			<-hold
		}
		return b, nil
	})
	e := openEngine(t, t.TempDir(), p)
	e.stacking = max(e.stacking, stacking) // what the kernel has not cannot be tested
	root := mountRoot(t, e, pull(t, e, testRef))
	if b, err := os.ReadFile(filepath.Join(root, "zz-last")); err != nil || string(b) != "needed now" {
		t.Errorf("got %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "big")); err != nil || sum(b) != sum([]byte(random(1001, 3<<20+17))) {
		t.Errorf("big file: %d bytes, %v", len(b), err)
	}
	if names, err := os.ReadDir(root); err != nil || len(names) != 7+3 {
		t.Errorf("the root has %v, %v, want seven directories and three files", names, err)
	}
	close(hold)
	wait(t, e, testRef)
	check(t, e, img)
}

func sum(b []byte) digest.Digest { return digest.FromBytes(b) }

func TestPullsAtOnceShareObjects(t *testing.T) {
	p := newFakeProxy(t)
	e := openEngine(t, t.TempDir(), p)
	const n = 8
	imgs := make([]*testImage, n)
	for i := range n {
		imgs[i] = newTestImage(t, manyFiles(1, 200), files{"own": fmt.Sprint(i), "half": fmt.Sprint(i / 2)})
		p.add(fmt.Sprintf("registry.test/app%d:1", i), imgs[i])
	}
	var g errgroup.Group
	for i := range n {
		g.Go(func() error {
			got, err := e.testPull(t.Context(), fmt.Sprintf("registry.test/app%d:1", i))
			if err == nil {
				defer got.Release()
				err = e.Wait(t.Context(), fmt.Sprintf("registry.test/app%d:1", i), func(ImageStatus) error { return nil })
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, img := range imgs {
		check(t, e, img)
	}
	if _, most := p.counts(); most != 1 {
		t.Errorf("an object was sent %d times", most)
	}
}

func TestWrongBytesAreNeverStored(t *testing.T) {
	for name, evil := range map[string]func(toc.Object, []byte) ([]byte, error){
		"flipped bit": func(o toc.Object, b []byte) ([]byte, error) {
			b[len(b)/2] ^= 1
			return b, nil
		},
		"cut off":  func(toc.Object, []byte) ([]byte, error) { return nil, errCut },
		"left out": func(toc.Object, []byte) ([]byte, error) { return nil, nil },
		"shorter":  func(_ toc.Object, b []byte) ([]byte, error) { return b[:len(b)-1], nil },
	} {
		t.Run(name, func(t *testing.T) {
			bad, good := newFakeProxy(t), newFakeProxy(t)
			img := newTestImage(t, manyFiles(1, 50))
			bad.add(testRef, img)
			good.add(testRef, img)
			victims := map[toc.Digest]bool{}
			for i, o := range toc.ObjectList(img.layers...) {
				if i%5 == 4 || o.Size > toc.PieceSize {
					victims[o.Digest] = true
				}
			}
			bad.set(func(_ *http.Request, o toc.Object, b []byte) ([]byte, error) {
				if victims[o.Digest] {
					return evil(o, b)
				}
				return b, nil
			})
			e := openEngine(t, t.TempDir(), bad, good)
			pull(t, e, testRef)
			wait(t, e, testRef)
			check(t, e, img)
		})
	}
}

func TestRestartGoesOn(t *testing.T) {
	p := newFakeProxy(t)
	img := newTestImage(t, manyFiles(1, 100))
	p.add(testRef, img)
	var once sync.Once
	half := make(chan struct{})
	n := 0
	p.set(func(r *http.Request, _ toc.Object, b []byte) ([]byte, error) {
		if n++; n == 50 {
			once.Do(func() { close(half) })
			<-r.Context().Done()
			return nil, errCut
		}
		return b, nil
	})
	root := t.TempDir()
	e := openEngine(t, root, p)
	pull(t, e, testRef)
	<-half
	for e.Status(testRef)[0].ObjectsLocal < 49 {
		time.Sleep(time.Millisecond)
	}
	closeEngine(t, e, false)
	p.set(nil)
	e = openEngine(t, root, p)
	s := wait(t, e, testRef)
	check(t, e, img)
	if sent, _ := p.counts(); sent > len(img.contents)+1 {
		t.Errorf("%d objects were sent for %d", sent, len(img.contents))
	}
	if s.Mode != ModeDelta {
		t.Errorf("status %+v", s)
	}
}

// What another version left is not touched: containers may run on it.
func TestAnotherVersionsImagesAreLeftAlone(t *testing.T) {
	p := newFakeProxy(t)
	img := newTestImage(t, manyFiles(1, 10))
	p.add(testRef, img)
	root := t.TempDir()
	e := openEngine(t, root, p)
	pull(t, e, testRef)
	wait(t, e, testRef)
	path := e.tocPath(img.layers[0].DiffID)
	for d, i := range e.images {
		rec := i.rec
		rec.Layers = slices.Clone(rec.Layers)
		rec.Layers[0].TOC = toc.Digest{} // is that of the file
		if err := e.state.putImage(d, rec); err != nil {
			t.Fatal(err)
		}
	}
	closeEngine(t, e, false)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := bytes.Clone(good)
	old[4]-- // version
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if e, err := Open(t.Context(), Config{Root: root}); !errors.Is(err, toc.ErrVersion) {
		if err == nil {
			closeEngine(t, e, true)
		}
		t.Fatalf("got %v, want ErrVersion", err)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	e = openEngine(t, root, p)
	check(t, e, img)
	if s := e.Status(testRef)[0]; s.ObjectsLocal < s.Objects {
		t.Errorf("status %+v", s)
	}
}

func TestSweep(t *testing.T) {
	p := newFakeProxy(t)
	shared := manyFiles(1, 20)
	one, two := newTestImage(t, shared, files{"one": "1"}), newTestImage(t, shared, files{"two": "2"})
	p.add(testRef, one)
	p.add("registry.test/app:2", two)
	e := openEngine(t, t.TempDir(), p)
	p1, p2 := pull(t, e, testRef), pull(t, e, "registry.test/app:2")
	wait(t, e, testRef)
	wait(t, e, "registry.test/app:2")
	if err := e.Sweep(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	check(t, e, one) // pinned
	p1.Release()
	p2.Release()
	live := e.images[two.digest()].top().id
	dead := e.images[one.digest()].top().id
	if err := e.Sweep(t.Context(), []digest.Digest{live}); err != nil {
		t.Fatal(err)
	}
	check(t, e, two)
	if e.HasChain(dead) || !e.HasChain(live) {
		t.Error("wrong chains left")
	}
	if _, ok := e.Virtual(p1.Layers[1].Digest); ok {
		t.Error("layer of the removed image is still virtual")
	}
	if _, ok := e.Virtual(p2.Layers[0].Digest); !ok {
		t.Error("shared layer is not virtual any more")
	}
	if len(e.Status(testRef)) != 0 {
		t.Error("removed image has a status")
	}
	for d := range one.contents {
		_, err := os.Stat(filepath.Join(e.objects.Dir(), d.Path()))
		if _, kept := two.contents[d]; kept != (err == nil) {
			t.Errorf("object %s: %v, in use: %v", d, err, kept)
		}
	}
	if err := e.Sweep(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, n := e.objects.Usage(); n != 0 {
		t.Errorf("%d objects left", n)
	}
}

func TestNotAccelerated(t *testing.T) {
	for name, tc := range map[string]struct {
		ref   string
		setup func(*fakeProxy)
		want  string
		class func(error) bool
	}{
		"no proxy for host": {"other.test/app:1", func(*fakeProxy) {}, "no proxy is configured", nil},
		"not a reference":   {"app", func(*fakeProxy) {}, "not host/repository", errdefs.IsInvalidArgument},
		"unknown image":     {"registry.test/none:1", func(*fakeProxy) {}, "no such image", errdefs.IsNotFound},
		"refused": {testRef, func(p *fakeProxy) { p.refuse = &wire.Error{Code: wire.CodeUnauthorized, Message: "go away"} },
			"go away", errdefs.IsUnauthorized},
		"down": {testRef, func(p *fakeProxy) { p.Close() }, "connection refused", errdefs.IsUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			p := newFakeProxy(t)
			p.add(testRef, newTestImage(t, files{"a": "a"}))
			e := openEngine(t, t.TempDir(), p)
			tc.setup(p)
			_, err := e.testPull(t.Context(), tc.ref)
			if !errors.Is(err, ErrNotAccelerated) || !strings.Contains(err.Error(), tc.want) || tc.class != nil && !tc.class(err) {
				t.Errorf("got %v", err)
			}
			e.Plain("default", tc.ref, err)
			if s := e.Status(tc.ref); len(s) != 1 || s[0].Mode != ModePlain || !strings.Contains(s[0].Reason, tc.want) {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func TestReadFailsWhenEverySourceIsGone(t *testing.T) {
	p := newFakeProxy(t)
	p.add(testRef, newTestImage(t, manyFiles(1, 20)))
	p.set(func(r *http.Request, _ toc.Object, _ []byte) ([]byte, error) { return nil, errCut })
	root := t.TempDir()
	e := openEngine(t, root, p)
	e.cfg.ReadTimeout = time.Second
	dir := mountRoot(t, e, pull(t, e, testRef))
	p.CloseClientConnections()
	p.Close()
	if _, err := os.ReadFile(filepath.Join(dir, "big")); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
}

func TestCanonical(t *testing.T) {
	for ref, want := range map[string]string{
		"localhost:5000/a/b:tag":           "localhost:5000/a/b:tag",
		"docker.io/library/a@sha256:00":    "docker.io/library/a@sha256:00",
		"localhost:5000/a/b:tag@sha256:00": "localhost:5000/a/b@sha256:00",
	} {
		if got := canonical(ref); got != want {
			t.Errorf("%q: got %q, want %q", ref, got, want)
		}
	}
}
