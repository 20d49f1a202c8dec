package content_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	ccontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/starlight-delta/starlight/plugins/content"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
)

// layers is an engine that knows blobs, and counts how often they are fetched.
type layers struct {
	mu      sync.Mutex
	blobs   map[digest.Digest][]byte // what Virtual tells; guarded by mu
	sends   map[digest.Digest][]byte // what FetchBlob gives instead; guarded by mu
	fetches atomic.Int32
}

func newLayers(blobs ...[]byte) *layers {
	l := &layers{blobs: map[digest.Digest][]byte{}, sends: map[digest.Digest][]byte{}}
	for _, b := range blobs {
		l.blobs[digest.FromBytes(b)] = b
	}
	return l
}

func (l *layers) Virtual(d digest.Digest) (engine.BlobInfo, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.blobs[d]
	return engine.BlobInfo{Digest: d, Size: int64(len(b))}, ok
}

func (l *layers) WalkVirtual(fn func(engine.BlobInfo) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d, b := range l.blobs {
		if err := fn(engine.BlobInfo{Digest: d, Size: int64(len(b))}); err != nil {
			return err
		}
	}
	return nil
}

func (l *layers) FetchBlob(_ context.Context, d digest.Digest) (io.ReadCloser, error) {
	l.fetches.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, ok := l.sends[d]; ok {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	return io.NopCloser(bytes.NewReader(l.blobs[d])), nil
}

func (l *layers) ForgetBlob(d digest.Digest) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.blobs[d]
	delete(l.blobs, d)
	return ok, nil
}

func newStore(t testing.TB, root string, e content.Engine) (*content.Store, error) {
	t.Helper()
	inner, err := local.NewStore(root)
	if err != nil {
		return nil, err
	}
	return content.New(t.Context(), inner, e)
}

// overMetadata puts the store below a metadata database, as the daemon does.
func overMetadata(t testing.TB, e content.Engine, opts ...metadata.DBOpt) testsuite.StoreInitFn {
	return func(ctx context.Context, root string) (context.Context, ccontent.Store, func() error, error) {
		cs, err := newStore(t, root, e)
		if err != nil {
			return nil, nil, nil, err
		}
		db, err := bolt.Open(filepath.Join(root, "metadata.db"), 0o600, nil)
		if err != nil {
			return nil, nil, nil, err
		}
		var count atomic.Uint64
		name := testsuite.Name(ctx)
		wrap := func(ctx context.Context, shared bool) (context.Context, func(context.Context) error, error) {
			ns := fmt.Sprintf("%s-n%d", name, count.Add(1))
			ctx = namespaces.WithNamespace(ctx, ns)
			var err error
			if shared {
				err = db.Update(func(tx *bolt.Tx) error {
					return metadata.NewNamespaceStore(tx).SetLabel(ctx, ns, labels.LabelSharedNamespace, "true")
				})
			}
			return ctx, func(context.Context) error { return nil }, err
		}
		ctx = testsuite.SetContextWrapper(ctx, wrap)
		return ctx, metadata.NewDB(db, cs, nil, opts...).ContentStore(), db.Close, nil
	}
}

func TestSuite(t *testing.T) {
	e := newLayers([]byte("a virtual blob that no test asks for"))
	testsuite.ContentSuite(t, "starlight", overMetadata(t, e))
	testsuite.ContentCrossNSSharedSuite(t, "starlight", overMetadata(t, e))
	testsuite.ContentCrossNSIsolatedSuite(t, "starlight", overMetadata(t, e, metadata.WithPolicyIsolated))
	testsuite.ContentSharedNSIsolatedSuite(t, "starlight", overMetadata(t, e, metadata.WithPolicyIsolated))
}

func TestVirtualBlob(t *testing.T) {
	blob := bytes.Repeat([]byte("layer"), 1000)
	d := digest.FromBytes(blob)
	e := newLayers(blob)
	s, err := newStore(t, t.TempDir(), e)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()

	info, err := s.Info(ctx, d)
	if err != nil || info.Size != int64(len(blob)) {
		t.Fatalf("info: got %v, %v", info, err)
	}
	if _, err := s.Info(ctx, digest.FromString("unknown")); !errdefs.IsNotFound(err) {
		t.Errorf("info of an unknown blob: got %v", err)
	}
	if _, err := s.Update(ctx, ccontent.Info{Digest: d}, "labels.a"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("update: got %v", err)
	}

	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got, err := ccontent.ReadBlob(ctx, s, ocispec.Descriptor{Digest: d, Size: info.Size})
			if err != nil || !bytes.Equal(got, blob) {
				t.Errorf("read: got %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if n := e.fetches.Load(); n != 1 {
		t.Errorf("fetched %d times, want once", n)
	}
	if seen := walk(t, s); len(seen) != 1 || seen[0] != d {
		t.Errorf("walk: got %v, want %v once", seen, d)
	}

	if err := s.Delete(ctx, d); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Info(ctx, d); !errdefs.IsNotFound(err) {
		t.Errorf("info after delete: got %v", err)
	}
}

func TestWalkFilters(t *testing.T) {
	a, b := []byte("aaa"), []byte("bbb")
	s, err := newStore(t, t.TempDir(), newLayers(a, b))
	if err != nil {
		t.Fatal(err)
	}
	got := walk(t, s, "digest=="+digest.FromBytes(a).String())
	if len(got) != 1 || got[0] != digest.FromBytes(a) {
		t.Errorf("got %v", got)
	}
	if got := walk(t, s, "labels.x==y"); len(got) != 0 {
		t.Errorf("got %v, want nothing", got)
	}
	// As the garbage collector does it.
	err = s.Walk(t.Context(), func(i ccontent.Info) error { return s.Delete(t.Context(), i.Digest) })
	if err != nil {
		t.Fatal(err)
	}
	if got := walk(t, s); len(got) != 0 {
		t.Errorf("got %v, want nothing", got)
	}
}

func TestHold(t *testing.T) {
	blob := []byte("held")
	d := digest.FromBytes(blob)
	s, err := newStore(t, t.TempDir(), newLayers(blob))
	if err != nil {
		t.Fatal(err)
	}
	release := s.Hold(d)
	if err := s.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got := walk(t, s); len(got) != 1 {
		t.Fatalf("a held blob is gone: %v", got)
	}
	release()
	release()
	if err := s.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got := walk(t, s); len(got) != 0 {
		t.Errorf("got %v, want nothing", got)
	}
}

func TestFetchRejects(t *testing.T) {
	blob := []byte("the real contents")
	d := digest.FromBytes(blob)
	for name, sent := range map[string][]byte{
		"wrong bytes": []byte("the fake contents"),
		"short":       blob[:5],
		"long":        append(bytes.Clone(blob), 'x'),
	} {
		t.Run(name, func(t *testing.T) {
			e := newLayers(blob)
			e.sends[d] = sent
			s, err := newStore(t, t.TempDir(), e)
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			if _, err := s.ReaderAt(ctx, ocispec.Descriptor{Digest: d}); err == nil {
				t.Fatal("no error")
			}
			if st, err := s.ListStatuses(ctx); err != nil || len(st) != 0 {
				t.Errorf("left behind: %v, %v", st, err)
			}
			delete(e.sends, d)
			if got, err := ccontent.ReadBlob(ctx, s, ocispec.Descriptor{Digest: d}); err != nil || !bytes.Equal(got, blob) {
				t.Errorf("second attempt: got %q, %v", got, err)
			}
		})
	}
}

// TestIngestIsHidden: the garbage collector of metadata aborts the ingests that
// it does not know.
func TestIngestIsHidden(t *testing.T) {
	blob := []byte("slow")
	d := digest.FromBytes(blob)
	root := t.TempDir()
	e := &stalled{layers: newLayers(blob), reached: make(chan struct{})}
	s, err := newStore(t, root, e)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
		done <- err
	}()
	<-e.reached
	err = s.WalkStatusRefs(t.Context(), func(ref string) error { return fmt.Errorf("saw %q", ref) })
	if err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

// stalled gives a blob that never comes.
type stalled struct {
	*layers
	reached chan struct{}
}

func (s *stalled) FetchBlob(ctx context.Context, _ digest.Digest) (io.ReadCloser, error) {
	close(s.reached)
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestSharedIngest records a virtual blob in two namespaces without a fetch.
func TestSharedIngest(t *testing.T) {
	blob := []byte("shared by all")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	e := newLayers(blob)
	_, cs, done, err := overMetadata(t, e)(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := done(); err != nil {
			t.Error(err)
		}
	}()
	for _, ns := range []string{"one", "two"} {
		ctx := namespaces.WithNamespace(t.Context(), ns)
		if _, err := cs.Info(ctx, desc.Digest); !errdefs.IsNotFound(err) {
			t.Fatalf("%s: got %v before it is recorded", ns, err)
		}
		w, err := cs.Writer(ctx, ccontent.WithRef("r"), ccontent.WithDescriptor(desc))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(ctx, desc.Size, desc.Digest); err != nil {
			t.Fatal(err)
		}
		if _, err := cs.Info(ctx, desc.Digest); err != nil {
			t.Errorf("%s: %v", ns, err)
		}
	}
	if n := e.fetches.Load(); n != 0 {
		t.Errorf("fetched %d times, want never", n)
	}
	got, err := ccontent.ReadBlob(namespaces.WithNamespace(t.Context(), "two"), cs, desc)
	if err != nil || !bytes.Equal(got, blob) {
		t.Errorf("got %q, %v", got, err)
	}
}

func walk(t *testing.T, s *content.Store, fs ...string) (seen []digest.Digest) {
	t.Helper()
	err := s.Walk(t.Context(), func(i ccontent.Info) error {
		seen = append(seen, i.Digest)
		return nil
	}, fs...)
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// TestTornIngest: of an ingest that was under way, a power cut may leave anything.
func TestTornIngest(t *testing.T) {
	root := t.TempDir()
	for name, ref := range map[string]string{"a": "layer-1", "b": "", "c": "starlight-virtual-1"} {
		dir := filepath.Join(root, "ingest", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "ref"), []byte(ref), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := newStore(t, root, newLayers())
	if err != nil {
		t.Fatal(err)
	}
	// What metadata does with those that it does not know.
	if err := s.WalkStatusRefs(t.Context(), func(ref string) error { return s.Abort(t.Context(), ref) }); err != nil {
		t.Error(err)
	}
}
