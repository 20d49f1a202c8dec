package transfer

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
)

// refusing is an engine that accelerates nothing, and notes what it was asked.
type refusing struct {
	mu    sync.Mutex // guards asked
	asked []engine.PullRequest
	plain []error
}

func (r *refusing) Pull(_ context.Context, req engine.PullRequest) (*engine.Pull, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, req)
	return nil, engine.ErrNotAccelerated
}

func (r *refusing) Plain(_, _ string, why error) { r.plain = append(r.plain, why) }

// noting is a transfer service that resolves, and notes what it was given.
type noting struct {
	src, dst any
	resolved error
}

func (n *noting) Transfer(ctx context.Context, src, dst any, _ ...transfer.Opt) error {
	n.src, n.dst = src, dst
	if f, ok := src.(*source); ok {
		_, _, n.resolved = f.Resolve(ctx)
	}
	return nil
}

func TestTransferAsksTheEngine(t *testing.T) {
	const ref = "registry.invalid:5000/a/b:tag@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	host := platforms.DefaultSpec()
	other := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	src, err := registry.NewOCIRegistry(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		dst       any
		platforms []ocispec.Platform // none: not ours
	}{
		"starlight":       {image.NewStore(ref, image.WithUnpack(other, "starlight")), []ocispec.Platform{other}},
		"second platform": {image.NewStore(ref, image.WithUnpack(host, "overlayfs"), image.WithUnpack(other, "starlight")), []ocispec.Platform{other}},
		"both platforms": {image.NewStore(ref, image.WithUnpack(host, "starlight"), image.WithUnpack(other, "starlight"), image.WithUnpack(host, "starlight")),
			[]ocispec.Platform{host, other}},
		"overlayfs": {image.NewStore(ref, image.WithUnpack(host, "overlayfs")), nil},
		"none":      {image.NewStore(ref, image.WithUnpack(host, "")), nil},
		"no unpack": {image.NewStore(ref), nil},
		"no store":  {"something else", nil},
	} {
		t.Run(name, func(t *testing.T) {
			e, inner := &refusing{}, &noting{}
			ctx, cancel := context.WithCancel(namespaces.WithNamespace(t.Context(), "ns"))
			defer cancel()
			if err := New(Config{Inner: inner, Engine: e}).Transfer(ctx, src, tc.dst); err != nil {
				t.Fatal(err)
			}
			if len(tc.platforms) == 0 {
				if len(e.asked) != 0 || inner.src != any(src) {
					t.Errorf("asked %v, source %T", e.asked, inner.src)
				}
				return
			}
			if len(e.asked) != len(tc.platforms) || len(e.plain) != 1 || !errors.Is(e.plain[0], engine.ErrNotAccelerated) {
				t.Fatalf("asked %v, plain %v", e.asked, e.plain)
			}
			for _, got := range e.asked { // at once
				if got.Ref != ref || got.Namespace != "ns" || got.Also != (got.Platform.Architecture != tc.platforms[0].Architecture) {
					t.Errorf("got %+v", got)
				}
			}
			if inner.resolved == nil {
				t.Error("the client's own source was not asked: its registry does not exist")
			}
		})
	}
}

func TestResolvable(t *testing.T) {
	for ref, want := range map[string]bool{
		"localhost:5000/a/b:tag":        true,
		"docker.io/library/a@sha256:00": true,
		"docker.io/a:t@sha256:00":       true,
		"docker.io/a":                   false,
		"a":                             false,
	} {
		if err := resolvable(ref); (err == nil) != want {
			t.Errorf("%q: got %v, want resolvable %v", ref, err, want)
		}
	}
}

func TestDefaultSnapshotter(t *testing.T) {
	cs, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	bdb, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer bdb.Close()
	db := metadata.NewDB(bdb, cs, nil)
	label := func(ns string) (value string) {
		if err := db.View(func(tx *bolt.Tx) error {
			labels, err := metadata.NewNamespaceStore(tx).Labels(t.Context(), ns)
			value = labels[defaults.DefaultSnapshotterNSLabel]
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return value
	}
	for ns, value := range map[string]string{"chosen": "native", "old": ""} {
		if err := db.Update(func(tx *bolt.Tx) error {
			labels := map[string]string{}
			if value != "" {
				labels[defaults.DefaultSnapshotterNSLabel] = value
			}
			return metadata.NewNamespaceStore(tx).Create(t.Context(), ns, labels)
		}); err != nil {
			t.Fatal(err)
		}
	}
	d, err := NewNamespaceDefaults(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	if label("chosen") != "native" || label("old") != plugins.SnapshotterName {
		t.Errorf("at start: got %q and %q", label("chosen"), label("old"))
	}

	const ref = "registry.invalid/a:b"
	src, err := registry.NewOCIRegistry(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	e, inner := &refusing{}, &noting{}
	tr := New(Config{Inner: inner, Engine: e, Defaults: d})
	ctx := namespaces.WithNamespace(t.Context(), "new")
	p := platforms.DefaultSpec()
	for given, want := range map[string]string{"": "starlight", "overlayfs": "overlayfs"} {
		if err := tr.Transfer(ctx, src, image.NewStore(ref, image.WithUnpack(p, given))); err != nil {
			t.Fatal(err)
		}
		if got := inner.dst.(transfer.ImageUnpacker).UnpackPlatforms(); len(got) != 1 || got[0].Snapshotter != want {
			t.Errorf("given %q: got %v", given, got)
		}
		if _, ok := inner.dst.(transfer.ImageFilterer); !ok {
			t.Errorf("given %q: the destination lost its filter", given)
		}
	}
	if len(e.asked) != 1 {
		t.Errorf("the engine was asked %d times, want once", len(e.asked))
	}
	if got := label("new"); got != plugins.SnapshotterName {
		t.Errorf("new namespace: got %q", got)
	}
}
