package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const registryModule = "github.com/distribution/distribution/v3/cmd/registry@v3.1.2"

// password of the one account, "user".
const password = "correct horse"

const htpasswd = "user:$2a$04$krI8bi0Y1F.LMT3x0az09emK9FENvMQ53Yhhleqpe42P830fX4Mju\n"

// registryBinary finds a real registry, or builds one once per machine.
var registryBinary = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("REGISTRY_BINARY"); b != "" {
		return b, nil
	}
	if b, err := exec.LookPath("registry"); err == nil {
		return b, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "starlight-test", "bin")
	bin := filepath.Join(dir, "registry")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	cmd := exec.Command("go", "install", registryModule)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the registry: %w: %s", err, out)
	}
	return bin, nil
})

// testRegistry is a running registry.
type testRegistry struct {
	host string
	user string // of pushes; "" without authentication
}

func startRegistry(tb testing.TB, private bool) *testRegistry {
	tb.Helper()
	return startRegistryWith(tb, private, "")
}

// startRegistryWith starts a registry with further sections of its configuration.
func startRegistryWith(tb testing.TB, private bool, more string) *testRegistry {
	tb.Helper()
	bin, err := registryBinary()
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	r := &testRegistry{host: freeAddr(tb)}
	auth := ""
	if private {
		r.user = "user"
		name := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(name, []byte(htpasswd), 0o600); err != nil {
			tb.Fatal(err)
		}
		auth = "auth:\n  htpasswd:\n    realm: test\n    path: " + name + "\n"
	}
	config := filepath.Join(dir, "config.yml")
	text := "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: " + dir + "/data\nhttp:\n  addr: " + r.host + "\n" + auth + more
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(bin, "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	startProcess(tb, cmd)
	waitHTTP(tb, "http://"+r.host+"/v2/")
	return r
}

func startProcess(tb testing.TB, cmd *exec.Cmd) {
	tb.Helper()
	var out bytes.Buffer
	cmd.Stdout = &out
	if cmd.Stderr == nil {
		cmd.Stderr = &out
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if tb.Failed() && out.Len() > 0 {
			tb.Logf("%s: %s", filepath.Base(cmd.Path), out.String())
		}
	})
}

func freeAddr(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func waitHTTP(tb testing.TB, url string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := http.Get(url)
		if err == nil {
			_ = resp.Body.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("%s does not answer: %v", url, err)
		}
	}
}

func (r *testRegistry) do(tb testing.TB, method, url, contentType string, body []byte, want int) http.Header {
	tb.Helper()
	if !strings.HasPrefix(url, "http") {
		url = "http://" + r.host + url
	}
	req, err := http.NewRequestWithContext(tb.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if r.user != "" {
		req.SetBasicAuth(r.user, password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != want {
		tb.Fatalf("%s %s: %s: %s", method, url, resp.Status, text)
	}
	return resp.Header
}

func (r *testRegistry) pushBlob(tb testing.TB, repo string, b []byte) digest.Digest {
	tb.Helper()
	d := digest.FromBytes(b)
	loc := r.do(tb, http.MethodPost, "/v2/"+repo+"/blobs/uploads/", "", nil, http.StatusAccepted).Get("Location")
	sep := "?"
	if strings.Contains(loc, "?") {
		sep = "&"
	}
	r.do(tb, http.MethodPut, loc+sep+"digest="+d.String(), "application/octet-stream", b, http.StatusCreated)
	return d
}

// testImage is an image that was pushed.
type testImage struct {
	ref      string // by tag
	byDigest string
	manifest toc.Digest
	blobs    map[string][]byte     // of layers, by digest
	files    map[toc.Digest][]byte // the contents of its tree
}

// push makes an image of layers of files (name → content) behind an index.
func (r *testRegistry) push(tb testing.TB, repo, tag string, layers ...map[string][]byte) *testImage {
	tb.Helper()
	img := &testImage{blobs: map[string][]byte{}, files: map[toc.Digest][]byte{}}
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	cfg.Config.Cmd = []string{"/bin/app"}
	cfg.RootFS.Type = "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	tree := map[string][]byte{}
	for _, files := range layers {
		plain, zipped := tarball(tb, files)
		d := r.pushBlob(tb, repo, zipped)
		img.blobs[d.String()] = zipped
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(plain))
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(zipped))})
		maps.Copy(tree, files)
	}
	for _, c := range tree {
		if len(c) > 0 {
			img.files[sha256.Sum256(c)] = c
		}
	}
	cb := mustJSON(tb, cfg)
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: r.pushBlob(tb, repo, cb), Size: int64(len(cb))}
	mb := mustJSON(tb, m)
	md := digest.FromBytes(mb)
	r.do(tb, http.MethodPut, "/v2/"+repo+"/manifests/"+md.String(), m.MediaType, mb, http.StatusCreated)
	index := mustJSON(tb, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{{MediaType: m.MediaType, Digest: md, Size: int64(len(mb)), Platform: &cfg.Platform}},
	})
	r.do(tb, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, ocispec.MediaTypeImageIndex, index, http.StatusCreated)
	img.ref, img.byDigest = r.host+"/"+repo+":"+tag, r.host+"/"+repo+"@"+md.String()
	img.manifest, _ = toc.ParseDigest(md.String())
	return img
}

func mustJSON(tb testing.TB, v any) []byte {
	tb.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func tarball(tb testing.TB, files map[string][]byte) (plain, zipped []byte) {
	tb.Helper()
	var p, z bytes.Buffer
	zw, err := gzip.NewWriterLevel(&z, gzip.BestSpeed)
	if err != nil {
		tb.Fatal(err)
	}
	tw := tar.NewWriter(io.MultiWriter(&p, zw))
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name])), Typeflag: tar.TypeReg}); err != nil {
			tb.Fatal(err)
		}
		if _, err := tw.Write(files[name]); err != nil {
			tb.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		tb.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		tb.Fatal(err)
	}
	return p.Bytes(), z.Bytes()
}
