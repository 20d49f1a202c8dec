package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/integration/internal/registry"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
	"github.com/starlight-delta/starlight/internal/fscmp"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// A converted image is the same to stock containerd, which knows nothing of its format,
// and to Starlight, which pulls it as a delta; passwords come from docker's configuration.
func TestConvertedImages(t *testing.T) {
	start := time.Now()
	bin, err := tools.Stock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, lan)
	r := w.private(registry.Basic, 5100, "tinyhttp", "v1")
	p := w.proxydWith(sandbox.ProxydConfig{Registries: []string{r.Host}})
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})
	stock := w.node(sandbox.NodeConfig{Name: "stock", Binaries: bin})
	src := r.Ref("secret/tinyhttp", "v1")
	good := registry.User + ":" + registry.Password
	ready := image(t, "tinyhttp", "v1").Ready
	insecure := []string{"--insecure-source", "--insecure-destination"}

	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	if out, err := n.Ctr(t.Context(), append([]string{"starlight", "convert", src, r.Ref("secret/tinyhttp", "no")}, insecure...)...); err == nil || !strings.Contains(err.Error(), "docker login") {
		t.Errorf("convert without credentials: %v: %s", err, out)
	}
	if out, err := n.Ctr(t.Context(), "starlight", "convert", src, r.Ref("secret/tinyhttp", "no")); err == nil || !strings.Contains(err.Error(), "--insecure-source") {
		t.Errorf("convert without TLS: %v: %s", err, out)
	}
	auth := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.Host, base64.StdEncoding.EncodeToString([]byte(good)))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(auth), 0o600); err != nil {
		t.Fatal(err)
	}
	type converted struct {
		Digest   string   `json:"digest"`
		Notified []string `json:"notified"`
	}
	for _, format := range []string{"estargz", "zstdchunked"} {
		t.Run(format, func(t *testing.T) {
			dst := r.Ref("secret/tinyhttp", format)
			c := fromJSON[converted](n, append([]string{"convert", "--format", format, "--notify", src, dst}, insecure...)...)
			if len(c.Notified) != 1 || c.Notified[0] != p.Address {
				t.Errorf("got %+v, want the proxy to be notified", c)
			}
			desc, manifest, err := r.Manifest(t.Context(), "secret/tinyhttp", format)
			if err != nil || desc.Digest.String() != c.Digest || !strings.Contains(string(manifest), "containerd.io/snapshot/stargz/toc.digest") {
				t.Errorf("the registry has %s, %v: %s; want %s with digests of TOCs", desc.Digest, err, manifest, c.Digest)
			}
			if err := stock.Pull(t.Context(), dst, "--user", good); err != nil {
				t.Fatal(err)
			}
			stock.runReady(dst, "stock-"+format, overlayfs, ready)
			n.pull(dst, "--user", good)
			if s := n.status1(dst); s.Mode != "delta" || !s.Vouched {
				t.Fatalf("got %+v, want a delta of an image that vouches for its TOCs", s)
			}
			n.wait(dst)
			n.runReady(dst, "lazy-"+format, starlight, ready)
			diffs, err := fscmp.Compare(stock.mount(t, dst, overlayfs), n.mount(t, dst, starlight), fscmp.Options{DirTimesBefore: start, Max: 10})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range diffs {
				t.Error(d)
			}
		})
	}
	// Original and copy can be told apart by a node that wants manifests to name TOCs.
	strict := w.node(sandbox.NodeConfig{Name: "strict", Proxies: []string{p.Address}, Engine: "  require_toc_digests = true\n"})
	strict.pull(src, "--user", good)
	if s := strict.status1(src); s.Mode != "plain" || s.Vouched || !strings.Contains(s.Reason, "require_toc_digests") {
		t.Errorf("the original is %+v, want it plain, and the reason", s)
	}
	strict.pull(r.Ref("secret/tinyhttp", "estargz"), "--user", good)
	if s := strict.status1(r.Ref("secret/tinyhttp", "estargz")); s.Mode != "delta" || !s.Vouched {
		t.Errorf("the copy is %+v, want a delta", s)
	}
	// What differs from the original is what was asked for: hardly a byte of contents.
	type delta struct {
		New struct {
			Bytes int64 `json:"bytes"`
		} `json:"new"`
	}
	if d := fromJSON[delta](n, "delta", "--user", good, "--from", src, r.Ref("secret/tinyhttp", "zstdchunked")); d.New.Bytes > 10 {
		t.Errorf("the converted image has %d bytes of contents that the original has not", d.New.Bytes)
	}
}

// A converted image names the TOCs that proxyd makes of its layers: a proxyd that says
// otherwise is refused.
func TestConvertedImageRefusesALie(t *testing.T) {
	start := time.Now()
	w := newWorld(t, lan)
	p := w.proxyd()
	src := w.push("tinyhttp", "v1")
	var seen []wire.Layer // of the header, before it was changed
	lie := hostileNames("lie")
	m, err := newMangler(w.Link.Cloud, p.Address, func(out *wire.Writer, f wire.Frame) error {
		if f.Type == wire.FrameHeader {
			seen = f.Header.Layers
		}
		return lie(out, f)
	})
	if err != nil {
		t.Fatal(err)
	}
	n := w.node(sandbox.NodeConfig{Proxies: []string{w.listen("8099", m.to)}})
	for _, format := range []string{"estargz", "zstdchunked"} {
		t.Run(format, func(t *testing.T) {
			dst := w.Registry.Ref("tinyhttp", format)
			n.ctr("starlight", "convert", "--insecure-source", "--insecure-destination", "--format", format, src, dst)
			_, b, err := w.Registry.Manifest(t.Context(), "tinyhttp", format)
			if err != nil {
				t.Fatal(err)
			}
			var manifest ocispec.Manifest
			if err := json.Unmarshal(b, &manifest); err != nil {
				t.Fatal(err)
			}
			n.pull(dst)
			if len(seen) == 0 || len(seen) != len(manifest.Layers) {
				t.Fatalf("got %d layers from proxyd, and %d in the manifest", len(seen), len(manifest.Layers))
			}
			for i, l := range manifest.Layers {
				if named, err := toc.Named(l.Annotations); err != nil || named != seen[i].TOC {
					t.Errorf("layer %d: proxyd made the TOC %s, the manifest names %s, %v", i, seen[i].TOC, named, err)
				}
			}
			why := "names " + seen[0].TOC.String()
			if s := n.status1(dst); s.Mode != "plain" || s.Vouched || !strings.Contains(s.Reason, why) {
				t.Errorf("got %+v, want it plain, as the manifest %s", s, why)
			}
			if !strings.Contains(n.Log(), why) {
				t.Error("the log does not tell why")
			}
			if err := n.Pull(t.Context(), dst, "--snapshotter", overlayfs); err != nil {
				t.Fatal(err)
			}
			diffs, err := fscmp.Compare(n.mount(t, dst, overlayfs), n.mount(t, dst, starlight), fscmp.Options{DirTimesBefore: start, Max: 10})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range diffs {
				t.Error(d)
			}
		})
	}
	// That was not for another reason: of the original, the lie is believed.
	n.pull(src)
	if s := n.status1(src); s.Mode != "delta" || s.Vouched {
		t.Errorf("got %+v, want a delta", s)
	}
}
