package registry_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/internal/meta/sqlstore"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/internal/registry/registrytest"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

var (
	amd64   = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm64   = ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	layer   = registrytest.Layer{Blob: []byte("not read here"), DiffID: sha256.Sum256([]byte("x"))}
	unknown = ocispec.Platform{OS: "unknown", Architecture: "unknown"}
)

// counter counts requests.
type counter struct {
	n    atomic.Int64
	next http.RoundTripper
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return c.next.RoundTrip(r)
}

func (c *counter) observe(next http.RoundTripper) http.RoundTripper {
	c.next = next
	return c
}

func client(t *testing.T, cfg registry.Config) *registry.Client {
	t.Helper()
	if cfg.PlainHTTP == nil {
		cfg.PlainHTTP = []string{"127.0.0.1:*"}
	}
	s, err := sqlstore.Open(t.Context(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	cfg.Documents = s
	return registry.New(cfg)
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var w *wire.Error
	if !errors.As(err, &w) || w.Code != code {
		t.Errorf("got %v, want code %q", err, code)
	}
}

func TestImage(t *testing.T) {
	r := registrytest.Start(t)
	one := r.Image(t, "a/one", "amd64", layer, layer)
	r.Tag(t, "a/one", "v1", one)
	x, y := r.Image(t, "a/multi", "amd64", layer), r.Image(t, "a/multi", "arm64")
	attestation := r.Image(t, "a/multi", "s390x")
	attestation.Platform = &unknown
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	index := r.Index(t, "a/multi", attestation, y, x)
	r.Tag(t, "a/multi", "v1", index)
	plain := y
	plain.Platform = nil
	inner := r.Index(t, "a/multi", plain)
	nested := r.Index(t, "a/multi", attestation, inner, x)
	r.Tag(t, "a/multi", "nested", nested)
	c := client(t, registry.Config{})
	for _, tc := range []struct {
		ref      string
		platform ocispec.Platform
		manifest digest.Digest
		indexes  int
		layers   int
	}{
		{"/a/one:v1", amd64, one.Digest, 0, 2},
		{"/a/one@" + one.Digest.String(), amd64, one.Digest, 0, 2},
		{"/a/one:v9@" + one.Digest.String(), amd64, one.Digest, 0, 2},
		{"/a/multi:v1", amd64, x.Digest, 1, 1},
		{"/a/multi:v1", arm64, y.Digest, 1, 0},
		{"/a/multi@" + index.Digest.String(), arm64, y.Digest, 1, 0},
		{"/a/multi:nested", arm64, y.Digest, 2, 0},
		{"/a/multi:nested", amd64, x.Digest, 1, 1},
	} {
		img, err := c.Image(t.Context(), r.Host+tc.ref, tc.platform, nil)
		if err != nil {
			t.Errorf("%s: %v", tc.ref, err)
			continue
		}
		indexes := len(img.Inner)
		if img.Index != nil {
			indexes++
		}
		if img.Manifest.Digest.String() != tc.manifest.String() || indexes != tc.indexes || len(img.Layers) != tc.layers {
			t.Errorf("%s for %s: manifest %s below %d indexes with %d layers", tc.ref, tc.platform.Architecture, img.Manifest.Digest, indexes, len(img.Layers))
		}
		if want := strings.FieldsFunc(r.Host+tc.ref, func(r rune) bool { return r == '@' })[0]; !strings.HasPrefix(want, img.Name) {
			t.Errorf("%s: name %q", tc.ref, img.Name)
		}
	}
	for ref, code := range map[string]string{
		r.Host + "/a/one:none": wire.CodeNotFound,
		r.Host + "/a/none:v1":  wire.CodeNotFound,
		r.Host + "/a/one":      wire.CodeInvalid,
		r.Host + "/A/one:v1":   wire.CodeInvalid,
		r.Host + "/a/one@sha512:" + strings.Repeat("a", 128): wire.CodeUnsupported,
		"127.0.0.1:1/a/one:v1":                               wire.CodeUpstream,
	} {
		_, err := c.Image(t.Context(), ref, amd64, nil)
		wantCode(t, err, code)
	}
	_, err := c.Image(t.Context(), r.Host+"/a/one:v1", arm64, nil)
	wantCode(t, err, wire.CodeNotFound)
}

func TestImageAsksOnce(t *testing.T) {
	r := registrytest.Start(t)
	r.Tag(t, "a", "v1", r.Index(t, "a", r.Image(t, "a", "amd64", layer)))
	n := &counter{}
	c := client(t, registry.Config{Observe: n.observe, CacheTTL: -1})
	for i, want := range []int64{4, 1, 1} { // HEAD, index, manifest, config
		n.n.Store(0)
		if _, err := c.Image(t.Context(), r.Host+"/a:v1", amd64, nil); err != nil {
			t.Fatal(err)
		}
		if got := n.n.Load(); got != want {
			t.Errorf("call %d: %d requests, want %d", i, got, want)
		}
	}
}

func TestUnsupported(t *testing.T) {
	r := registrytest.Start(t)
	cfg := r.PushJSON(t, "a", ocispec.MediaTypeImageConfig, ocispec.Image{Platform: amd64})
	blob := r.Push(t, "a", ocispec.MediaTypeImageLayerGzip, []byte("x"))
	encrypted, odd := blob, cfg
	encrypted.MediaType = ocispec.MediaTypeImageLayerGzip + "+encrypted"
	odd.MediaType = "application/vnd.example.config"
	c := client(t, registry.Config{})
	for name, m := range map[string]ocispec.Manifest{
		"no diff ID": {Config: cfg, Layers: []ocispec.Descriptor{blob}},
		"encrypted":  {Config: cfg, Layers: []ocispec.Descriptor{encrypted}},
		"artifact":   {Config: odd, Layers: []ocispec.Descriptor{}},
	} {
		m.SchemaVersion, m.MediaType = 2, ocispec.MediaTypeImageManifest
		d := r.PushJSON(t, "a", m.MediaType, m)
		_, err := c.Image(t.Context(), r.Host+"/a@"+d.Digest.String(), amd64, nil)
		t.Log(name, err)
		wantCode(t, err, wire.CodeUnsupported)
	}
}

func TestBasicAuth(t *testing.T) {
	r := registrytest.StartBasicAuth(t)
	r.Tag(t, "a", "v1", r.Image(t, "a", "amd64", layer))
	c := client(t, registry.Config{})
	good := &wire.Credentials{Username: registrytest.User, Secret: registrytest.Password}
	ref := r.Host + "/a:v1"
	img, err := c.Image(t.Context(), ref, amd64, good)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []*wire.Credentials{nil, {}, {Username: registrytest.User, Secret: "wr0ng"}, {Secret: registrytest.Password}} {
		// Also when the answer for other credentials is cached.
		_, err := c.Image(t.Context(), ref, amd64, bad)
		wantCode(t, err, wire.CodeUnauthorized)
		if bad != nil && bad.Secret != "" && strings.Contains(err.Error(), bad.Secret) {
			t.Errorf("the error tells the secret: %v", err)
		}
		_, err = c.Blob(t.Context(), ref, img.Layers[0].Descriptor, bad)
		wantCode(t, err, wire.CodeUnauthorized)
		wantCode(t, c.HasBlob(t.Context(), ref, img.Layers[0].Descriptor, bad), wire.CodeUnauthorized)
	}
	if err := c.HasBlob(t.Context(), ref, img.Layers[0].Descriptor, good); err != nil {
		t.Error(err)
	}
	rc, err := c.Blob(t.Context(), ref, img.Layers[0].Descriptor, good)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if err != nil || string(b) != string(layer.Blob) {
		t.Errorf("Blob = %q, %v", b, err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
}

func TestAllowed(t *testing.T) {
	c := client(t, registry.Config{Allowed: []string{"*.example.com", "quay.io"}})
	for _, ref := range []string{"redis:7", "127.0.0.1:1/a:v1", "example.com/a:v1", "quay.io.evil.org/a:v1"} {
		_, err := c.Image(t.Context(), ref, amd64, nil)
		wantCode(t, err, wire.CodeDenied)
	}
}

func TestBlobFaults(t *testing.T) {
	content := "content of the blob"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/short/"):
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, content[:5])
		case strings.Contains(r.URL.Path, "/wrong/"):
			_, _ = io.WriteString(w, strings.ToUpper(content))
		case strings.Contains(r.URL.Path, "/long/"):
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, content+"more")
		}
	}))
	defer srv.Close()
	c := client(t, registry.Config{})
	desc := ocispec.Descriptor{Digest: digest.FromString(content), Size: int64(len(content))}
	for _, repo := range []string{"short", "wrong", "long"} {
		rc, err := c.Blob(context.Background(), srv.Listener.Addr().String()+"/"+repo, desc, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(rc)
		wantCode(t, err, wire.CodeUpstream)
		if err := rc.Close(); err != nil {
			t.Error(err)
		}
	}
}
