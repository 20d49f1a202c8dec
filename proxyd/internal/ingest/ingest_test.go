package ingest

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/blob/fsblob"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta/sqlstore"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/internal/registry/registrytest"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// countedSource counts the blobs that are read and asked for; breaks of the
// first of them end in the middle.
type countedSource struct {
	Source
	blobs, heads, breaks atomic.Int32
}

func (s *countedSource) Blob(ctx context.Context, ref string, d ocispec.Descriptor, c *wire.Credentials) (io.ReadCloser, error) {
	s.blobs.Add(1)
	rc, err := s.Source.Blob(ctx, ref, d, c)
	if err == nil && s.breaks.Add(-1) >= 0 {
		return broken{rc}, nil
	}
	return rc, err
}

func (s *countedSource) HasBlob(ctx context.Context, ref string, d ocispec.Descriptor, c *wire.Credentials) error {
	s.heads.Add(1)
	return s.Source.HasBlob(ctx, ref, d, c)
}

type broken struct{ io.ReadCloser }

func (broken) Read([]byte) (int, error) {
	return 0, &wire.Error{Code: wire.CodeUpstream, Message: "broken off"}
}

type fixture struct {
	reg    *registrytest.Registry
	client *registry.Client
	source *countedSource
	meta   meta.Store
	dir    string
	*Ingester
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{reg: registrytest.Start(t), dir: t.TempDir()}
	db, err := sqlstore.Open(t.Context(), filepath.Join(f.dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := fsblob.New(filepath.Join(f.dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	f.meta, f.client = db, registry.New(registry.Config{PlainHTTP: []string{"*"}, Documents: db})
	f.source = &countedSource{Source: f.client}
	f.Ingester = New(Config{Source: f.source, Meta: db, Blobs: blobs})
	t.Cleanup(func() { _ = errors.Join(f.Close(), db.Close()) })
	return f
}

func (f *fixture) resolve(t *testing.T, repo string, d ocispec.Descriptor) *registry.Image {
	t.Helper()
	img, err := f.client.Image(t.Context(), f.reg.Host+"/"+repo+"@"+d.Digest.String(), amd64, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestImage(t *testing.T) {
	f := newFixture(t)
	base, top := archive(t, file("a", random(1, 3<<20)), file("b", "b")), archive(t, file("c", "c"))
	gz := registrytest.Layer{Blob: gzipped(t, base), DiffID: sha256.Sum256(base)}
	zst := registrytest.Layer{Blob: zstded(t, base), DiffID: gz.DiffID, MediaType: ocispec.MediaTypeImageLayerZstd}
	plain := registrytest.Layer{Blob: top, DiffID: sha256.Sum256(top), MediaType: ocispec.MediaTypeImageLayer}
	for _, tc := range []struct {
		name, repo   string
		layers       []registrytest.Layer
		blobs, heads int32 // requests
	}{
		{"new", "one", []registrytest.Layer{gz, plain, plain}, 2, 0},
		{"again", "one", []registrytest.Layer{gz, plain, plain}, 0, 0},
		{"shares layers", "one", []registrytest.Layer{gz}, 0, 1},
		{"another repository", "two", []registrytest.Layer{gz, plain}, 0, 2},
		{"compressed otherwise", "two", []registrytest.Layer{zst}, 1, 0},
		{"no layers", "two", nil, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := f.resolve(t, tc.repo, f.reg.Image(t, tc.repo, "amd64", tc.layers...))
			f.source.blobs.Store(0)
			f.source.heads.Store(0)
			g, ctx := errgroup.WithContext(t.Context())
			for range 4 { // at once: one ingest
				g.Go(func() error {
					layers, err := f.Image(ctx, img, nil, func(int64, int64) {})
					if err != nil {
						return err
					}
					if len(layers) != len(tc.layers) {
						t.Errorf("%d layers, want %d", len(layers), len(tc.layers))
					}
					for i, l := range layers {
						enc, err := f.TOC(ctx, l)
						if err != nil {
							return err
						}
						c, err := toc.Decode(enc)
						if err != nil {
							return err
						}
						if c.DiffID != tc.layers[i].DiffID || l.Objects != len(c.Objects) {
							t.Errorf("layer %d is another one", i)
						}
						p, err := f.Pack(ctx, l)
						if err != nil {
							return err
						}
						if err := p.Close(); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			if b, h := f.source.blobs.Load(), f.source.heads.Load(); b != tc.blobs || h != tc.heads {
				t.Errorf("%d blobs read and %d asked for, want %d and %d", b, h, tc.blobs, tc.heads)
			}
		})
	}
}

func TestImageOfWrongDiffID(t *testing.T) {
	f := newFixture(t)
	secret, other := archive(t, file("secret", "x")), archive(t, file("other", "y"))
	good := registrytest.Layer{Blob: gzipped(t, secret), DiffID: sha256.Sum256(secret)}
	if _, err := f.Image(t.Context(), f.resolve(t, "a", f.reg.Image(t, "a", "amd64", good)), nil, nil); err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]registrytest.Layer{
		"new blob, unknown diff ID": {Blob: gzipped(t, other), DiffID: sha256.Sum256([]byte("?"))},
		// Who knows the diff ID of a layer must not get the layer for it.
		"new blob, known diff ID":   {Blob: gzipped(t, other), DiffID: good.DiffID},
		"known blob, other diff ID": {Blob: good.Blob, DiffID: sha256.Sum256(other)},
	} {
		_, err := f.Image(t.Context(), f.resolve(t, "b", f.reg.Image(t, "b", "amd64", l)), nil, nil)
		var w *wire.Error
		if !errors.As(err, &w) || w.Code != wire.CodeUnsupported {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestImageRetriesAndHeals(t *testing.T) {
	f := newFixture(t)
	b := archive(t, file("a", random(1, 1<<20)))
	img := f.resolve(t, "a", f.reg.Image(t, "a", "amd64", registrytest.Layer{Blob: gzipped(t, b), DiffID: sha256.Sum256(b)}))
	f.source.breaks.Store(2)
	layers, err := f.Image(t.Context(), img, nil, nil)
	if err != nil || f.source.blobs.Load() != 3 {
		t.Fatalf("after %d attempts: %v", f.source.blobs.Load(), err)
	}
	if err := os.Remove(filepath.Join(f.dir, "blobs", "blobs", layers[0].PackKey)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Pack(t.Context(), layers[0]); err == nil {
		t.Fatal("the pack is still there")
	}
	if layers, err = f.Image(t.Context(), img, nil, nil); err != nil {
		t.Fatal(err)
	}
	p, err := f.Pack(t.Context(), layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
