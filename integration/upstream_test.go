package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
	"github.com/starlight-delta/starlight/integration/internal/wan"
	"github.com/starlight-delta/starlight/integration/internal/weird"
)

// internet is what clients see through HTTPS_PROXY: hosts that all lead to the registry
// of the world.
func (w *world) internet(hosts ...string) {
	t := w.t
	t.Helper()
	a := newAuthority(t, w.Dir)
	a.issue("internet", &x509.Certificate{DNSNames: hosts, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	cert, err := tls.LoadX509KeyPair(a.file("internet.pem"), a.file("internet.key"))
	if err != nil {
		t.Fatal(err)
	}
	far := w.Link.Cloud.Client().Transport
	to := &url.URL{Scheme: "http", Host: w.Registry.Host}
	w.serve("3129", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, &httputil.ReverseProxy{
		Transport: far, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) },
	})
	w.serve("3128", nil, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(rw, "only CONNECT", http.StatusMethodNotAllowed)
			return
		}
		up, err := w.Link.Cloud.Dial(r.Context(), "tcp", net.JoinHostPort(wan.CloudAddr, "3129"))
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadGateway)
			return
		}
		defer up.Close()
		down, buffered, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer down.Close()
		if _, err := io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(up, buffered) // until either side hangs up
			_ = up.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(down, up)
	}))
	t.Setenv("HTTPS_PROXY", "http://"+net.JoinHostPort(wan.CloudAddr, "3128"))
	t.Setenv("SSL_CERT_FILE", a.file("ca.pem"))
}

// serve serves at the far end until the end of the test.
func (w *world) serve(port string, conf *tls.Config, h http.Handler) {
	w.t.Helper()
	l, err := w.Link.Cloud.Listen(w.t.Context(), net.JoinHostPort(wan.CloudAddr, port))
	if err != nil {
		w.t.Fatal(err)
	}
	if conf != nil {
		l = tls.NewListener(l, conf)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(l) }() // until it is closed
	w.t.Cleanup(func() { _ = srv.Close() })
}

// userland pushes an image of busybox.
func (w *world) userland(name, tag string, layers ...map[string]string) {
	t := w.t
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err, "(run \"make setup\")")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	applets, err := process.Run(nil, exec.CommandContext(t.Context(), path, "--list"))
	if err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "layout")
	if err := weird.Userland(name+":"+tag, b, strings.Fields(applets), []string{"arm64", "s390x"}, layers...).Write(layout); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Registry.Push(t.Context(), layout, name, weird.Tag); err != nil {
		t.Fatal(err)
	}
	repo, err := w.Registry.Repository(name)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := repo.Resolve(t.Context(), weird.Tag)
	if err == nil {
		err = repo.Tag(t.Context(), desc, tag)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// containerd's own tests of its client pass on our containerd, with starlight in the
// place of overlayfs and a proxy that makes pulls deltas.
func TestUpstreamClientTests(t *testing.T) {
	bin, err := tools.ClientTests(t.Context(), starlight)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, lan)
	w.internet("ghcr.io", "registry.k8s.io")
	p := w.proxyd()
	more := map[string]string{"etc/motd": "hello", "data/file": strings.Repeat("data", 5000)}
	w.userland("containerd/busybox", "1.36")
	w.userland("containerd/volume-copy-up", "2.2", more, map[string]string{"data/other": "other"})
	w.userland("containerd/volume-ownership", "2.1")
	w.userland("pause", "3.10.2", map[string]string{"pause": "1"})
	w.userland("pause", "3.6", map[string]string{"pause": "2"})
	w.userland("e2e-test-images/busybox", "1.29-2", map[string]string{"pause": "3"})
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})

	skip := upstreamOthers
	if testing.Short() {
		skip += upstreamLong
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "-test.v", "-test.timeout=9m", "-test.root", "-no-daemon", "-address", n.Socket,
		"-test.run", upstreamTests, "-test.skip", skip)
	cmd.Env = append(os.Environ(), "TEST_SNAPSHOTTER="+starlight)
	cmd.Dir = t.TempDir()
	out, err := process.Run(w.Link.Edge, cmd)
	passed := strings.Count(out, "\n--- PASS: ")
	if err != nil || passed < 25 {
		t.Errorf("%d tests passed: %v\n%s", passed, err, out)
	}
	if n.pulls() == 0 {
		t.Error("no pull was a delta: the test shows nothing")
	}
}

// What concerns images, contents, snapshots, leases and transfers, and containers that
// rest on them.
const upstreamTests = "^Test(Image|PullFetch|Snapshotter|Lease|Export|Import|Transfer|Convert|Content|MountManager|UserNamespaces|" +
	"NewContainer|ContainerImage|ContainerNoImage|ContainerUser|ContainerOutput|ContainerExec$|ContainerStart$|TaskSpec)"

// upstreamOthers are left out. One wants an image that is only on the internet, by
// digest. The other wants that an image is not unpacked which was pulled without a
// snapshotter: where starlight is the default, it is lazy at once, snapshots and all.
const upstreamOthers = "^TestExportAllCases$/^export_image_setting_ocispec.AnnotationRefName$|^TestImageIsUnpacked$"

// upstreamLong run in the conformance tests of single packages, too.
const upstreamLong = "|^TestSnapshotterClient$/128|^TestContentClient$"
