package delta

import (
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// answer is what a proxyd says of an image; tests bend it before it is written.
type answer struct {
	header   *wire.Header
	blobs    [][]byte
	tocs     [][]byte
	data     []byte
	index    ocispec.Index
	manifest ocispec.Manifest
	config   ocispec.Image
}

func sum(b []byte) toc.Digest { return sha256.Sum256(b) }

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newAnswer makes a linux/amd64 image of two layers behind an index. edit, if not
// nil, changes config, manifest or index before what points to them is made; it is
// called once for each with its name.
func newAnswer(t testing.TB, edit func(name string, a *answer)) *answer {
	t.Helper()
	if edit == nil {
		edit = func(string, *answer) {}
	}
	contents := []byte("hello, object\n")
	a := &answer{data: contents, header: &wire.Header{Stream: "s1", Objects: 1, Bytes: int64(len(contents)), TotalObjects: 1, TotalBytes: int64(len(contents))}}
	for i, name := range []string{"a", "b"} {
		tc := &toc.TOC{
			DiffID:  sum([]byte("diff " + name)),
			Entries: []toc.Entry{{Name: name, Type: toc.TypeReg, Mode: 0o644, Object: sum(contents), Size: int64(len(contents))}},
			Objects: []toc.Object{{Digest: sum(contents), Size: int64(len(contents))}},
		}
		enc := tc.Encode()
		a.tocs = append(a.tocs, enc)
		a.header.Layers = append(a.header.Layers, wire.Layer{
			DiffID: tc.DiffID, Digest: sum([]byte("layer " + name)), Size: int64(1000 + i),
			MediaType: ocispec.MediaTypeImageLayerGzip, TOC: sum(enc), Sent: true,
		})
	}
	a.config = ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	a.manifest = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range a.header.Layers {
		a.config.RootFS.DiffIDs = append(a.config.RootFS.DiffIDs, asOCI(l.DiffID))
		a.manifest.Layers = append(a.manifest.Layers, ocispec.Descriptor{MediaType: l.MediaType, Digest: asOCI(l.Digest), Size: l.Size})
	}
	edit("config", a)
	config := mustJSON(t, a.config)
	a.manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	edit("manifest", a)
	manifest := mustJSON(t, a.manifest)
	a.index = ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("other"), Size: 5, Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64"}},
		{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)), Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}},
	}}
	edit("index", a)
	a.blobs = [][]byte{mustJSON(t, a.index), manifest, config}
	for i, mt := range []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig} {
		a.header.Blobs = append(a.header.Blobs, wire.Blob{MediaType: mt, Digest: sum(a.blobs[i]), Size: int64(len(a.blobs[i]))})
	}
	return a
}

// noIndex makes a of an image whose reference names the manifest.
func (a *answer) noIndex() { a.header.Blobs, a.blobs = a.header.Blobs[1:], a.blobs[1:] }

// write writes the whole bundle.
func (a *answer) write(t testing.TB, w *wire.Writer) {
	steps := []func() error{func() error { return w.Header(a.header) }}
	for _, b := range a.blobs {
		steps = append(steps, func() error { return w.Blob(b) })
	}
	for _, b := range a.tocs {
		steps = append(steps, func() error { return w.TOC(b) })
	}
	steps = append(steps,
		func() error { return w.Data([]wire.Piece{{Length: len(a.data)}}, a.data, false) },
		w.End)
	for _, step := range steps {
		if err := step(); err != nil {
			t.Logf("writing the bundle: %v", err) // the client has refused it
			return
		}
	}
}

// clone makes a deep enough copy to bend.
func (a *answer) clone() *answer {
	c, h := *a, *a.header
	h.Layers, h.Blobs = slices.Clone(h.Layers), slices.Clone(h.Blobs)
	c.header, c.blobs, c.tocs = &h, slices.Clone(a.blobs), slices.Clone(a.tocs)
	return &c
}

// serve runs a proxyd that answers RouteDelta and RouteObjects by fn.
func serve(t *testing.T, fn func(w http.ResponseWriter, r *http.Request, bundle *wire.Writer)) *Client {
	t.Helper()
	mux := http.NewServeMux()
	for _, route := range []string{wire.RouteDelta, wire.RouteObjects} {
		mux.HandleFunc("POST "+route, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", wire.BundleType)
			fn(w, r, wire.NewWriter(w))
		})
	}
	mux.HandleFunc("GET "+wire.RoutePing, ping)
	return serveHTTP(t, mux, Config{})
}

func ping(w http.ResponseWriter, _ *http.Request) {
	_ = json.NewEncoder(w).Encode(wire.Ping{Version: "1.2.3", Protocol: wire.Version})
}

func serveHTTP(t *testing.T, h http.Handler, cfg Config) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	cfg.Address = srv.URL
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
