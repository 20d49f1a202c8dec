package integration

import (
	"context"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// cleanupContext is for work after a test has ended, when its own is cancelled.
func cleanupContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// listen serves h at the far end and returns its URL.
func (w *world) listen(port string, h http.Handler) string {
	w.t.Helper()
	l, err := w.Link.Cloud.Listen(w.t.Context(), net.JoinHostPort(wan.CloudAddr, port))
	if err != nil {
		w.t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends with Close
	}()
	w.t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			w.t.Error(err)
		}
		<-done
	})
	return "http://" + l.Addr().String()
}

// Whatever is wrong with the proxy, the pull succeeds as stock containerd's
// would, and the node says why.
func TestFallbackToPlainPull(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) {
			http.Error(rw, `{"code":"denied","message":"not here"}`, code)
		}
	}
	for _, c := range []struct {
		name   string
		proxy  func(w *world) string // its address, "" for none
		reason string                // must be in the reason
	}{
		{"none configured", func(*world) string { return "" }, "prox"},
		{"down", func(*world) string { return "http://" + wan.CloudAddr + ":1" }, "refused"},
		{"unreachable", func(*world) string { return "http://10.77.0.99:8090" }, ""},
		{"refuses", func(w *world) string { return w.listen("8091", status(http.StatusForbidden)) }, ""},
		{"too old", func(w *world) string { return w.listen("8091", http.NotFoundHandler()) }, ""},
		{"busy", func(w *world) string { return w.listen("8091", status(http.StatusServiceUnavailable)) }, ""},
		{"says nothing", func(w *world) string {
			return w.listen("8091", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		}, ""},
		{"speaks something else", func(w *world) string {
			return w.listen("8091", http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(make([]byte, 1<<20)) }))
		}, ""},
		{"not allowed this registry", func(w *world) string {
			return w.proxydWith(sandbox.ProxydConfig{Registries: []string{"elsewhere.example:5000"}}).Address
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, lan)
			conf := sandbox.NodeConfig{Engine: "  header_timeout = \"3s\"\n"}
			if a := c.proxy(w); a != "" {
				conf.Proxies = []string{a}
			}
			n := w.node(conf)
			ref := w.push("tinyhttp", "v1")
			n.pull(ref)
			s := n.status1(ref)
			if s.Mode != "plain" || s.Reason == "" || !strings.Contains(s.Reason, c.reason) {
				t.Errorf("got %+v, want mode plain and a reason with %q", s, c.reason)
			}
			if !strings.Contains(n.Log(), ref) {
				t.Error("containerd's log has no line about the image")
			}
			n.runReady(ref, "plain", starlight, image(t, "tinyhttp", "v1").Ready)
			// wait has nothing to wait for.
			n.wait(ref)
		})
	}
}

// An image that the registry does not have fails as with stock containerd.
func TestUnknownImageFails(t *testing.T) {
	w, _, n := accelerated(t, lan)
	err := n.Pull(t.Context(), w.Registry.Ref("no/such", "image"), "--snapshotter", starlight)
	if err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("got %v for an image that does not exist, want not found", err)
	}
}

// proxyd goes away in the middle of the stream: what is missing comes from the
// registry, or from proxyd when it is back, and readers only wait.
func TestProxyDiesInMidStream(t *testing.T) {
	for _, back := range []bool{true, false} {
		t.Run(map[bool]string{true: "and comes back", false: "for good"}[back], func(t *testing.T) {
			w, p, n := accelerated(t, slow)
			ref := w.push("redis", "v1")
			w.warm(p, ref)
			link := slow
			link.Down = 10
			if err := w.Link.Set(link); err != nil {
				t.Fatal(err)
			}
			n.pull(ref)
			p.Kill()
			if err := w.Link.Set(lan); err != nil {
				t.Fatal(err)
			}
			if back {
				w.proxyd()
			}
			n.wait(ref)
			if out := n.output(ref, "x", "redis-server", "--version"); !strings.Contains(out, "Redis server") {
				t.Errorf("got %q, want the version of Redis", out)
			}
		})
	}
}

// The cable is out in the middle of the stream: for a moment, for longer than anybody
// waits for an answer, or on the way to the proxy for good, which nobody is told.
func TestLinkIsCutInMidStream(t *testing.T) {
	for name, cut := range map[string]time.Duration{"for a second": time.Second, "for a minute": time.Minute, "for good": 0} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && cut != time.Second {
				t.Skip("long")
			}
			w := newWorld(t, slow)
			p := w.proxyd()
			n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}, Engine: "  stream_timeout = \"3s\"\n  header_timeout = \"3s\"\n"})
			ref := w.push("redis", "v1")
			w.ingest(p, ref)
			w.dribble()
			n.pull(ref)
			n.readAll(ref, "reader")
			if n.status1(ref).Complete {
				t.Error("everything was there already: the test shows nothing")
			}
			if cut == 0 {
				if err := p.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				defer p.Kill()
			} else {
				if err := w.Link.Cut(true); err != nil {
					t.Fatal(err)
				}
				select {
				case <-time.After(cut):
				case <-t.Context().Done():
				}
				if err := w.Link.Cut(false); err != nil {
					t.Fatal(err)
				}
			}
			w.fast()
			got := n.sum("reader")
			n.wait(ref)
			n.wrongObjects()
			n.readAll(ref, "fresh")
			if want := n.sum("fresh"); got != want {
				t.Errorf("the container read %s, another one %s", got, want)
			}
		})
	}
}
