package integration

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// post sends a request from a namespace and returns status and body.
func post(t *testing.T, from *wan.Namespace, url string, body []byte, encoding string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	client := from.Client()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// With default_snapshotter, clients that name no snapshotter get lazy images.
func TestDefaultSnapshotter(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}, DefaultSnapshotter: true})
	ref := w.push("tinyhttp", "v1")
	if err := n.Pull(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if s := n.status1(ref); s.Mode != "delta" {
		t.Errorf("got %+v without --snapshotter, want a delta", s)
	}
	n.runReady(ref, "app", "", image(t, "tinyhttp", "v1").Ready)
	// In a namespace that is new, too.
	n.ctr("-n", "new", "image", "pull", "--plain-http", ref)
	if out := n.ctr("-n", "new", "snapshots", "--snapshotter", starlight, "ls"); len(bytes.Split([]byte(out), []byte("\n"))) < 3 {
		t.Errorf("got snapshots %q in a new namespace, want those of the image", out)
	}
}

// Without a section, the snapshotter is an overlay snapshotter.
func TestNoSection(t *testing.T) {
	w := newWorld(t, lan)
	n := w.node(sandbox.NodeConfig{})
	ref := w.push("redis", "v1")
	for _, s := range []string{starlight, overlayfs} {
		if err := n.Pull(t.Context(), ref, "--snapshotter", s); err != nil {
			t.Fatal(err)
		}
		n.runReady(ref, "in-"+s, s, image(t, "redis", "v1").Ready)
	}
}

// The ways in which clients name an image and a registry.
func TestFlagsAndReferences(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	tag := w.push("tinyhttp", "v1")
	digest, _ := w.manifestOf("tinyhttp", "v1")

	hosts := filepath.Join(w.Dir, "hosts")
	dir := filepath.Join(hosts, w.Registry.Host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	toml := "server = \"http://" + w.Registry.Host + "\"\n[host.\"http://" + w.Registry.Host + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		name, ref string
		flags     []string
	}{
		{"plain http", tag, []string{"--plain-http"}},
		{"hosts dir", tag, []string{"--hosts-dir", hosts}},
		{"platform", tag, []string{"--plain-http", "--platform", "linux/amd64"}},
		{"digest", w.Registry.Ref("tinyhttp", digest), []string{"--plain-http"}},
		{"tag and digest", tag + "@" + digest, []string{"--plain-http"}},
		{"client-side pull", tag, []string{"--plain-http", "--local"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := &node{w.node(sandbox.NodeConfig{Name: "n" + string(rune('0'+i)), Proxies: []string{p.Address}}).Node, t}
			n.ctr(append(append([]string{"image", "pull", "--snapshotter", starlight}, c.flags...), c.ref)...)
			if got := n.imageTarget(c.ref); got != digest {
				t.Errorf("got target %s, want %s", got, digest)
			}
			n.runReady(c.ref, "app", starlight, image(t, "tinyhttp", "v1").Ready)
			if c.name != "client-side pull" {
				if s := n.status1(c.ref); s.Mode != "delta" {
					t.Errorf("got %+v, want a delta", s)
				}
			}
		})
	}
}
