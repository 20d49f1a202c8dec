package classic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/starlight-delta/starlight/plugins/internal/engine"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// refusing is an engine that accelerates nothing, and notes what it was asked.
type refusing struct {
	asked []engine.PullRequest
	plain []string
	why   error // of Pull
}

func (r *refusing) Pull(_ context.Context, req engine.PullRequest) (*engine.Pull, error) {
	r.asked = append(r.asked, req)
	return nil, r.why
}

func (r *refusing) PlainManifest(ns, ref string, _ digest.Digest, why error) {
	r.plain = append(r.plain, fmt.Sprintf("%s %s: %v", ns, ref, why))
}
func (*refusing) HasChain(digest.Digest) bool                   { return false }
func (*refusing) KnownByChain(digest.Digest) []engine.Known     { return nil }
func (*refusing) Virtual(digest.Digest) (engine.BlobInfo, bool) { return engine.BlobInfo{}, false }
func (*refusing) CredentialsOf(name string) *wire.Credentials {
	return &wire.Credentials{Username: name}
}

func (*refusing) Hosts(_ context.Context, hostname string) []string {
	return []string{hostname + ":5000", hostname}
}

// namespace is content as a client leaves it when it has pulled all but the layers.
type namespace struct {
	content.Store
	t   *testing.T
	ctx context.Context //nolint:containedctx // of the test
}

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	below, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(t.TempDir(), "metadata.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return &namespace{metadata.NewDB(db, below, nil).ContentStore(), t, namespaces.WithNamespace(t.Context(), "ns")}
}

func (n *namespace) put(media string, b []byte, labels map[string]string) ocispec.Descriptor {
	n.t.Helper()
	desc := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(b), Size: int64(len(b))}
	err := content.WriteBlob(n.ctx, n, desc.Digest.String(), bytes.NewReader(b), desc, content.WithLabels(labels))
	if err != nil {
		n.t.Fatal(err)
	}
	return desc
}

// image puts an image of layers in, and returns its chains.
func (n *namespace) image(labels map[string]string, layers ...string) (ocispec.Descriptor, []digest.Digest) {
	n.t.Helper()
	conf := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, digest.FromString("diff "+l))
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(l), Size: int64(len(l))})
	}
	m.Config = n.put(ocispec.MediaTypeImageConfig, marshal(n.t, conf), nil)
	all := map[string]string{labelConfig: m.Config.Digest.String()}
	maps.Copy(all, labels)
	return n.put(m.MediaType, marshal(n.t, m), all), identity.ChainIDs(slices.Clone(conf.RootFS.DiffIDs))
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const source = "containerd.io/distribution.source."

func newPuller(n *namespace, e Engine, ours bool) *Puller {
	return New(Config{
		Engine: e, Content: n, Patience: time.Minute,
		Default: func(context.Context, string) (bool, error) { return ours, nil },
	})
}

// What the engine is asked for comes from the content of the namespace.
func TestSeekAsksForTheManifest(t *testing.T) {
	n := newNamespace(t)
	n.put(ocispec.MediaTypeImageManifest, []byte("not JSON"), map[string]string{labelConfig: "sha256:0"})
	n.image(map[string]string{source + "reg.example": "other"}, "base", "other")
	m, chains := n.image(map[string]string{source + "reg.example": "team/app,team/fork"}, "base", "app", "top")
	at := "@" + m.Digest.String()
	for name, c := range map[string]struct {
		chain  digest.Digest
		labels map[string]string
		ctx    context.Context //nolint:containedctx // of the client in this case
		want   []string
	}{
		"shared layer": {chain: chains[0], want: []string{
			"reg.example:5000/team/app" + at, "reg.example:5000/team/fork" + at, "reg.example/team/app" + at, "reg.example/team/fork" + at,
		}},
		"port in label": {chain: chains[2], labels: map[string]string{snapshotters.TargetRefLabel: "reg.example:7000/x:y"}, want: []string{
			"reg.example:7000/team/app" + at, "reg.example:7000/team/fork" + at, "reg.example:5000/team/app" + at, "reg.example:5000/team/fork" + at,
		}},
		"host in label": {chain: chains[2], labels: map[string]string{snapshotters.TargetRefLabel: "evil.example:7000/x:y"}, want: []string{
			"reg.example:5000/team/app" + at, "reg.example:5000/team/fork" + at, "reg.example/team/app" + at, "reg.example/team/fork" + at,
		}},
		"unknown":  {chain: digest.FromString("unknown")},
		"transfer": {chain: chains[2], ctx: engine.WithAsked(n.ctx)},
	} {
		t.Run(name, func(t *testing.T) {
			e := &refusing{why: fmt.Errorf("%w: %w", engine.ErrNotAccelerated, errdefs.ErrNotFound)}
			p := newPuller(n, e, false)
			ctx := c.ctx
			if ctx == nil {
				ctx = n.ctx
			}
			for range 2 { // the second time is the same pull, which has its answer
				p.Seek(ctx, c.chain, c.labels)()
			}
			var got []string
			for _, r := range e.asked {
				got = append(got, r.Ref)
				creds, err := r.Credentials(ctx, "")
				if name, _, _ := strings.Cut(r.Ref, "@"); err != nil || creds.Username != name {
					t.Errorf("credentials %+v, %v for %s", creds, err, r.Ref)
				}
				if r.Platform.Architecture != "s390x" || !r.Unnamed || r.Namespace != "ns" {
					t.Errorf("asked %+v", r)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("want, got:\n%s", d)
			}
			if len(e.plain) != min(1, len(c.want)) {
				t.Errorf("told as plain: %q", e.plain)
			}
		})
	}
}

// Every pull of a client is tried, but once only.
func TestAttempts(t *testing.T) {
	n := newNamespace(t)
	_, chains := n.image(map[string]string{source + "reg.example": "app"}, "a", "b")
	e := &refusing{why: fmt.Errorf("%w: %w", engine.ErrNotAccelerated, errdefs.ErrUnavailable)}
	p := newPuller(n, e, false)
	for i, lease := range []string{"one", "one", "two", "", ""} {
		ctx := n.ctx
		if lease != "" {
			ctx = leases.WithLease(ctx, lease)
		}
		before := len(e.asked)
		p.Seek(ctx, chains[i%2], nil)()
		// Where no proxy can be reached, one name is enough.
		if got, want := len(e.asked)-before, []int{1, 0, 1, 1, 0}[i]; got != want {
			t.Errorf("step %d: asked %d times, want %d", i, got, want)
		}
	}
	gone, cancel := context.WithCancel(n.ctx)
	cancel()
	plain := len(e.plain)
	p.Seek(leases.WithLease(gone, "three"), chains[0], nil)()
	if len(e.plain) != plain {
		t.Error("a client that has gone decided something")
	}
}

// Layers that are here are unpacked from here.
func TestLayersAreHere(t *testing.T) {
	n := newNamespace(t)
	n.put(ocispec.MediaTypeImageLayerGzip, []byte("a"), nil)
	_, chains := n.image(map[string]string{source + "reg.example": "app"}, "a")
	e := &refusing{}
	p := newPuller(n, e, false)
	p.Seek(n.ctx, chains[0], nil)()
	p.Unpacks(n.ctx, chains[0])
	if len(e.asked) != 0 || len(e.plain) != 1 {
		t.Errorf("asked %v, told %q", e.asked, e.plain)
	}
}

// Fetches are looked at only where starlight is what clients use.
func TestAhead(t *testing.T) {
	n := newNamespace(t)
	n.image(map[string]string{source + "reg.example": "app"}, "a")
	for _, ours := range []bool{true, false} {
		e := &refusing{why: errors.New("no")}
		if newPuller(n, e, ours).Ahead(n.ctx, digest.FromString("a")) {
			t.Error("a layer is virtual that the engine does not know")
		}
		if asked := len(e.asked) > 0; asked != ours {
			t.Errorf("default %v: asked %v", ours, e.asked)
		}
	}
}
