package content_test

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"testing"

	ccontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// pulling makes layers virtual when somebody begins to fetch them.
type pulling struct {
	layers *layers
	blobs  map[digest.Digest][]byte
	asked  []digest.Digest
}

func (p *pulling) Ahead(_ context.Context, d digest.Digest) bool {
	p.asked = append(p.asked, d)
	b, ok := p.blobs[d]
	if !ok {
		return false
	}
	p.layers.mu.Lock()
	defer p.layers.mu.Unlock()
	p.layers.blobs[d] = b
	return true
}

// The fetch of a layer that becomes virtual meanwhile ends before its first byte;
// any other fetch is as ever.
func TestFetchOfALayerThatBecomesVirtual(t *testing.T) {
	lazy, eager := []byte("lazy layer"), []byte("eager layer")
	e := newLayers()
	ours := &pulling{layers: e, blobs: map[digest.Digest][]byte{digest.FromBytes(lazy): lazy}}
	for name, c := range map[string]struct {
		media string
		bytes []byte
		asks  bool
		lazy  bool
	}{
		"lazy layer":    {ocispec.MediaTypeImageLayerGzip, lazy, true, true},
		"eager layer":   {ocispec.MediaTypeImageLayerGzip, eager, true, false},
		"not a layer":   {ocispec.MediaTypeImageConfig, []byte("{}"), false, false},
		"docker layer":  {"application/vnd.docker.image.rootfs.diff.tar.gzip", []byte("docker"), true, false},
		"foreign layer": {"application/vnd.example+json", []byte("what"), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			below, err := newStore(t, t.TempDir(), e)
			if err != nil {
				t.Fatal(err)
			}
			below.SetPuller(ours)
			db, err := bolt.Open(filepath.Join(t.TempDir(), "metadata.db"), 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			cs := metadata.NewDB(db, below, nil).ContentStore()
			ours.asked = nil
			ctx := namespaces.WithNamespace(t.Context(), "ns")
			desc := ocispec.Descriptor{MediaType: c.media, Digest: digest.FromBytes(c.bytes), Size: int64(len(c.bytes))}
			fetched := 0
			err = remotes.Fetch(ctx, cs, remotes.FetcherFunc(func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
				fetched++
				return io.NopCloser(bytes.NewReader(c.bytes)), nil
			}), desc)
			if err != nil && !errdefs.IsAlreadyExists(err) {
				t.Fatal(err)
			}
			if asked := len(ours.asked) == 1; asked != c.asks || (fetched == 0) != c.lazy {
				t.Errorf("got asked %v, fetched %d times", ours.asked, fetched)
			}
			info, err := cs.Info(ctx, desc.Digest)
			if err != nil || info.Size != desc.Size {
				t.Errorf("got %+v, %v", info, err)
			}
			b, err := ccontent.ReadBlob(ctx, cs, desc)
			if err != nil || string(b) != string(c.bytes) {
				t.Errorf("got %q, %v", b, err)
			}
			if st, err := cs.ListStatuses(ctx); err != nil || len(st) != 0 {
				t.Errorf("ingests are left: %v, %v", st, err)
			}
		})
	}
}
